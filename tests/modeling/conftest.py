"""A saved classifier, whole or to damage, and the ways in which it is loaded."""

import shutil
from pathlib import Path

import pytest
from transformers import AutoModel, AutoModelForImageClassification

from qkvit import QKViTForImageClassification, QKViTModel

LOADERS = {
    "QKViTForImageClassification": QKViTForImageClassification.from_pretrained,
    "QKViTModel": QKViTModel.from_pretrained,
    "AutoModel": AutoModel.from_pretrained,
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
}


@pytest.fixture(scope="session")
def saved(tiny_model, tmp_path_factory) -> Path:
    """A saved classifier; nobody writes here."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy of it to damage."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture(params=LOADERS)
def load(request):
    """Each `from_pretrained` in turn."""
    return LOADERS[request.param]
