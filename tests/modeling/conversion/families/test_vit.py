"""transformers' `vit`: pooler, classifier, masked images, biases, activations, sizes."""

import pytest
from harness import CHECKS, MLP, SIZE, Case
from transformers import ViTConfig, ViTForImageClassification, ViTForMaskedImageModeling, ViTModel

from qkvit import QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.conversion import convert, export


def model(model_class=ViTModel, arguments=(), **options):
    return model_class(ViTConfig(**{**SIZE, **MLP, **options}), *arguments)


CASES = [
    Case("vit", "pooler", model),
    Case("vit", "no pooler, no biases of Q, K, V", lambda: model(ViTModel, (False,), qkv_bias=False)),
    Case("vit", "narrow pooler, mask", lambda: model(ViTModel, (True, True), pooler_output_size=7), masked=True),
    Case("vit", "other activations", lambda: model(hidden_act="quick_gelu", pooler_act="relu", layer_norm_eps=1e-3)),
    Case("vit", "classifier", lambda: model(ViTForImageClassification, num_labels=3)),
    Case("vit", "decoder", lambda: model(ViTForMaskedImageModeling, encoder_stride=4), sizes=((16, 16),), masked=True),
    Case("vit", "not square", lambda: model(image_size=(16, 24), patch_size=(8, 4)), sizes=((16, 24),)),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_vit(case, check, tmp_path):
    CHECKS[check](case, tmp_path)


def test_the_head_decides_the_class():
    assert type(convert(model())) is QKViTModel
    assert type(convert(model(ViTForImageClassification))) is QKViTForImageClassification
    assert type(convert(model(ViTForMaskedImageModeling, encoder_stride=4))) is QKViTForMaskedImageModeling


def test_a_decoder_of_another_stride_is_left_out(caplog):
    assert type(convert(model(ViTForMaskedImageModeling, encoder_stride=8))) is QKViTModel
    assert "decoder.0.weight" in caplog.text


def test_transformers_loads_what_is_exported(tmp_path):
    for model_class in (ViTModel, ViTForImageClassification):
        export(convert(CASES[0 if model_class is ViTModel else 4].model()), tmp_path / model_class.__name__)
        _, report = model_class.from_pretrained(tmp_path / model_class.__name__, output_loading_info=True)
        assert not any(report.values())
