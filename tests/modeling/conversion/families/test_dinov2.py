"""transformers' `dinov2`: mask token, gated MLP, classifier on class token and mean."""

from pathlib import Path

import pytest
import torch
from harness import CHECKS, SIZE, Case, images
from transformers import AutoModel, Dinov2Backbone, Dinov2Config, Dinov2ForImageClassification, Dinov2Model

from qkvit import QKViTBackbone
from qkvit.modeling.conversion import convert, export

REAL = Path(__file__).resolve().parents[5] / "shared" / "checkpoints" / "dinov2-small"


SIZE = {**SIZE, "mlp_ratio": 2}


def model(model_class=Dinov2Model, **options):
    return model_class(Dinov2Config(**{**SIZE, **options}))


CASES = [
    Case("dinov2", "mask token", model, masked=True),
    Case("dinov2", "no mask token, stochastic depth", lambda: model(use_mask_token=False, drop_path_rate=0.2)),
    Case("dinov2", "gated MLP", lambda: model(use_swiglu_ffn=True, mlp_ratio=3, use_mask_token=False)),
    Case(
        "dinov2",
        "classifier, no biases of Q, K, V",
        lambda: model(Dinov2ForImageClassification, num_labels=3, qkv_bias=False, hidden_act="relu"),
        still=("mask_token",),
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dinov2(case, check, tmp_path):
    CHECKS[check](case, tmp_path)


def test_the_settings_of_a_backbone_come_along(tmp_path):
    theirs = model(Dinov2Backbone, out_indices=[0, 2], apply_layernorm=False, reshape_hidden_states=False).eval()
    convert(theirs).save_pretrained(tmp_path)
    ours, pixels = QKViTBackbone.from_pretrained(tmp_path), images(16, 24, torch.float32)
    with torch.no_grad():
        for own, other in zip(ours(pixels).feature_maps, theirs(pixels).feature_maps, strict=True):
            assert torch.allclose(own, other, atol=1e-5)


def test_a_grid_that_is_not_square_is_refused(raises_sentence):
    with raises_sentence(ValueError, "image_size=[16, 24]", "square"):
        convert(model(image_size=[16, 24]))


def test_a_ratio_that_no_config_of_theirs_states_is_refused(tmp_path, tiny_model, raises_sentence):
    ours = tiny_model(intermediate_size=37, pooling="class_mean", layer_scale_init_value=0.5)
    with raises_sentence(ValueError, "'dinov2'", "intermediate_size=37"):
        export(ours, tmp_path / "out", family="dinov2")


@pytest.mark.skipif(not REAL.is_dir(), reason="the shared folder with the checkpoint is not here")
def test_a_real_checkpoint_gives_the_same_features_and_comes_back_as_the_same_file(tmp_path):
    theirs = AutoModel.from_pretrained(REAL, dtype=torch.float32).eval()
    ours = convert(REAL, dtype=torch.float32)
    for size in ((224, 224), (112, 168)):
        pixels = images(*size, torch.float32)[:1]
        with torch.no_grad():
            expected, found = theirs(pixels), ours(pixels)
        largest = (found.last_hidden_state - expected.last_hidden_state).abs().max()
        assert largest < 1e-5 * expected.last_hidden_state.abs().max()
    export(convert(REAL), tmp_path / "back")
    assert (tmp_path / "back" / "model.safetensors").read_bytes() == (REAL / "model.safetensors").read_bytes()
