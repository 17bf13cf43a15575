"""What the tests of the network share: an attention module with tokens; a saved classifier, whole or to damage."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.attention_qkvit import QKViTAttention

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


# ---- attention alone


@pytest.fixture
def attention(tiny_config) -> QKViTAttention:
    torch.manual_seed(0)
    attention = QKViTAttention(tiny_config(), 0).eval()
    attention.settle()
    return attention


@pytest.fixture
def tokens(tiny_config) -> torch.Tensor:
    return torch.randn(2, 5, tiny_config().hidden_size, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def products(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the weights of every linear product since the test began."""
    shapes: list[tuple[int, ...]] = []
    linear = nn.functional.linear

    def counted(x, weight, bias=None):
        shapes.append(tuple(weight.shape))
        return linear(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", counted)
    return shapes
