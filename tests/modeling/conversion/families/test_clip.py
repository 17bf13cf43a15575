"""The vision tower of CLIP: alone, inside the whole model, and with a classifier."""

import pytest
import torch
from harness import MLP, SIZE, Case, check_attention, check_every_tensor, check_outputs, check_round_trip
from tower_checks import TEXT, WHOLE, check_exported_loads, check_whole_model_round_trip, tower_outputs
from transformers import (
    CLIPConfig,
    CLIPForImageClassification,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from qkvit import QKViTConfig, QKViTForImageClassification, QKViTModel
from qkvit.modeling.conversion import convert, export


def tower(**options) -> CLIPVisionModel:
    return CLIPVisionModel(CLIPVisionConfig(**SIZE, **MLP, **options))


def whole(model_class, **options) -> torch.nn.Module:
    return model_class(CLIPConfig(vision_config={**SIZE, **MLP}, text_config={**TEXT, **MLP}, **options))


CASES = [
    Case("clip", "tower", tower),
    Case("clip", "gelu and eps", lambda: tower(hidden_act="gelu", layer_norm_eps=1e-3)),
    Case("clip", "whole model", lambda: whole(CLIPModel), run=tower_outputs, still=WHOLE),
    Case(
        "clip",
        "projection",
        lambda: CLIPVisionModelWithProjection(CLIPVisionConfig(**SIZE, **MLP, projection_dim=8)),
        run=tower_outputs,
        still=WHOLE,
    ),
    Case(
        "clip",
        "classifier",
        lambda: whole(CLIPForImageClassification, num_labels=3),
        run=tower_outputs,
        still=(*WHOLE, "post_layernorm"),
    ),
]
TOWERS = [case for case in CASES if case.option in ("tower", "gelu and eps")]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_outputs_are_the_same(case, dtype):
    check_outputs(case, dtype)


@pytest.mark.parametrize("case", CASES[::2], ids=str)
def test_queries_keys_values_and_maps_are_the_same(case):
    check_attention(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_matters(case):
    check_every_tensor(case)


@pytest.mark.parametrize("case", TOWERS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tower_comes_back_to_the_bit(case, dtype, tmp_path):
    check_round_trip(case, tmp_path, dtype=dtype)


@pytest.mark.parametrize("case", [case for case in CASES if case not in TOWERS], ids=str)
def test_the_tower_of_a_whole_model_comes_back_to_the_bit(case, tmp_path):
    check_whole_model_round_trip(
        case,
        tmp_path,
        apart=r"text_|visual_projection|logit_scale|post_layernorm"
        if case.option == "classifier"
        else r"text_|visual_projection|logit_scale",
    )


@pytest.mark.parametrize(
    ("case", "model_class", "missing"),
    [
        (CASES[0], CLIPVisionModel, set()),
        (CASES[2], CLIPVisionModel, set()),
        (CASES[4], CLIPForImageClassification, {"post_layernorm.weight", "post_layernorm.bias"}),
    ],
    ids=lambda value: " ".join(sorted(value)) if isinstance(value, set) else str(value),
)
def test_transformers_loads_what_is_exported(case, model_class, missing, tmp_path):
    check_exported_loads(case, model_class, tmp_path, missing=missing)


def test_the_last_hidden_state_is_not_normalised_and_the_pooled_output_is():
    ours = convert(CASES[0].model())
    assert isinstance(ours, QKViTModel)
    assert (ours.config.norm_position, ours.config.use_pre_norm, ours.config.patch_bias) == (
        "after_pooling",
        True,
        False,
    )


def test_labels_come_along(tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl"}
    whole(CLIPForImageClassification, id2label=names).save_pretrained(tmp_path / "source")
    ours = convert(tmp_path / "source")
    assert isinstance(ours, QKViTForImageClassification)
    assert ours.config.id2label == names
    again = CLIPForImageClassification.from_pretrained(export(ours, tmp_path / "out"))
    assert again.config.id2label == names


def test_the_config_of_a_whole_model_of_transformers_4_is_read():
    """It has some fields under a second name, which count."""
    theirs = CASES[2].model()
    config = theirs.config.to_dict()
    act = {"hidden_act": "gelu"}
    theirs.config = type("Config", (), {"to_dict": lambda self: {**config, "vision_config_dict": act}})()
    assert convert(theirs).config.hidden_act == "gelu"


@pytest.mark.parametrize("fields", [{"image_size": (16, 32)}, {"use_pre_norm": False}, {"num_register_tokens": 2}])
def test_what_clip_has_no_place_for_is_named(raises_sentence, tmp_path, fields):
    base = {**SIZE, **MLP, "norm_position": "after_pooling", "use_pre_norm": True, "patch_bias": False}
    ours = QKViTModel(QKViTConfig(**{**base, **fields}))
    with raises_sentence(ValueError, next(iter(fields))):
        export(ours, tmp_path / "out", family="clip")
    assert not (tmp_path / "out").exists()
