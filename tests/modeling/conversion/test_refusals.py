"""Models that cannot be converted, and those that are to be converted before they are loaded: one sentence for each."""

import json
from pathlib import Path

import pytest
from transformers import BeitConfig, BeitModel, ViTConfig, ViTModel

from qkvit import QKViTConfig, QKViTForImageClassification, QKViTModel
from qkvit.modeling.conversion import convert
from qkvit.modeling.conversion.families import families, family_of
from qkvit.modeling.conversion.refusals import REASONS

SIZE = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": 16,
    "patch_size": 4,
}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A model of a family that is read."""
    ViTModel(ViTConfig(**SIZE)).save_pretrained(tmp_path / "vit")
    return tmp_path / "vit"


def test_beit_is_refused_with_the_reason(raises_sentence):
    beit = BeitModel(BeitConfig(**SIZE, use_relative_position_bias=True))
    with raises_sentence(ValueError, "'beit'", "bias for each distance"):
        convert(beit)


@pytest.mark.parametrize("model_type", [*REASONS, "bert", None, 3, ["vit"], {}])
def test_other_models_are_refused_with_a_reason_or_a_list_of_what_is_read(model_type, folder, raises_sentence):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    with raises_sentence(ValueError, *families()):
        convert(folder)


def test_no_refused_model_type_is_a_family_s():
    assert not REASONS.keys() & {name for family in families().values() for name in family.model_types}


def test_a_qkvit_folder_is_refused(tmp_path, raises_sentence):
    QKViTModel(QKViTConfig(**SIZE)).save_pretrained(tmp_path)
    with raises_sentence(ValueError, "QKViT already"):
        convert(tmp_path)


def test_an_unknown_family_is_refused(folder, raises_sentence):
    with raises_sentence(ValueError, "family='resnet'", *families()):
        convert(folder, family="resnet")


@pytest.mark.parametrize(
    "family", [family for family in families().values() if family.model_types], ids=lambda f: f.name
)
@pytest.mark.parametrize("model_class", [QKViTModel, QKViTForImageClassification, QKViTConfig])
def test_loading_another_family_s_folder_names_the_command(family, model_class, tmp_path, raises_sentence):
    for model_type in family.model_types:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
        with raises_sentence(ValueError, f"`qkvit convert {tmp_path}", family.name):
            model_class.from_pretrained(tmp_path)


@pytest.mark.skipif(family_of({"architecture": "vit_tiny_patch16_224"}) is None, reason="there is no family timm")
def test_loading_a_timm_folder_names_the_command(tmp_path, raises_sentence):
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 10}))
    with raises_sentence(ValueError, f"`qkvit convert {tmp_path}", "timm"):
        QKViTModel.from_pretrained(tmp_path)
