"""The vision tower of SigLIP: with and without its head, inside the whole model, and with a classifier."""

import json

import pytest
import torch
from harness import MLP, SIZE, Case, check_attention, check_every_tensor, check_outputs, check_round_trip, images
from tower_checks import TEXT, WHOLE, check_exported_loads, check_whole_model_round_trip, tower_outputs
from transformers import (
    SiglipConfig,
    SiglipForImageClassification,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from qkvit import QKViTForImageClassification
from qkvit.modeling.conversion import convert, export


def tower(**options) -> SiglipVisionModel:
    return SiglipVisionModel(SiglipVisionConfig(**{**SIZE, **MLP, **options}))


def whole(model_class, **options) -> torch.nn.Module:
    head = options.pop("vision_use_head", True)
    vision = {**SIZE, **MLP, "vision_use_head": head}
    return model_class(SiglipConfig(vision_config=vision, text_config={**TEXT, **MLP}, **options))


CASES = [
    Case("siglip", "tower", tower),
    Case("siglip", "no head", lambda: tower(vision_use_head=False)),
    Case("siglip", "gelu and eps", lambda: tower(hidden_act="gelu", layer_norm_eps=1e-3)),
    Case("siglip", "whole model", lambda: whole(SiglipModel), run=tower_outputs, still=WHOLE),
    Case(
        "siglip",
        "classifier",
        lambda: whole(SiglipForImageClassification, num_labels=3),
        run=tower_outputs,
        still=(*WHOLE, r"head\."),
    ),
    Case(
        "siglip",
        "classifier, no head",
        lambda: whole(SiglipForImageClassification, num_labels=3, vision_use_head=False),
        run=tower_outputs,
        still=WHOLE,
    ),
]
EXACT = [case for case in CASES if case.option not in ("whole model", "classifier")]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_outputs_are_the_same(case, dtype):
    check_outputs(case, dtype)


@pytest.mark.parametrize("case", CASES[:1] + CASES[3:5], ids=str)
def test_queries_keys_values_and_maps_are_the_same(case):
    check_attention(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_matters(case):
    check_every_tensor(case)


@pytest.mark.parametrize("case", EXACT, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tensors_come_back_to_the_bit(case, dtype, tmp_path):
    check_round_trip(case, tmp_path, dtype=dtype)


@pytest.mark.parametrize(
    ("case", "apart"), [(CASES[3], r"text_|logit_"), (CASES[4], r"\.head\.")], ids=["whole model", "classifier"]
)
def test_what_a_model_uses_of_its_tower_comes_back_to_the_bit(case, apart, tmp_path):
    check_whole_model_round_trip(case, tmp_path, apart=apart)


@pytest.mark.parametrize(
    ("case", "model_class"),
    [
        (CASES[0], SiglipVisionModel),
        (CASES[1], SiglipVisionModel),
        (CASES[3], SiglipVisionModel),
        (CASES[4], SiglipForImageClassification),
    ],
    ids=str,
)
def test_transformers_loads_what_is_exported(case, model_class, tmp_path):
    check_exported_loads(case, model_class, tmp_path, missing=set())


def test_labels_come_along(tmp_path):
    names = {0: "cat", 1: "dog", 2: "owl"}
    whole(SiglipForImageClassification, id2label=names).save_pretrained(tmp_path / "source")
    ours = convert(tmp_path / "source")
    assert isinstance(ours, QKViTForImageClassification)
    assert ours.config.id2label == names
    assert SiglipForImageClassification.from_pretrained(export(ours, tmp_path / "out")).config.id2label == names


def test_pixels_that_fill_no_patch_are_passed_over(tmp_path):
    """As google/siglip-so400m-patch14-384, whose patch does not divide its images."""
    theirs = tower(image_size=18).eval()
    theirs.save_pretrained(tmp_path / "source")
    settings = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 18, "width": 18}}
    (tmp_path / "source" / "preprocessor_config.json").write_text(json.dumps(settings))
    ours = convert(tmp_path / "source")
    assert ours.config.image_shape == (16, 16)
    pixels = images(18, 18, torch.float32)
    expected = theirs(pixels).pooler_output
    torch.testing.assert_close(ours(pixels[..., :16, :16]).pooler_output, expected, rtol=1e-4, atol=1e-5)
    ours.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert saved["size"] == {"height": 16, "width": 16}


def test_the_heads_queries_keys_and_values_are_the_three_parts_of_one_matrix():
    theirs = CASES[0].model()
    ours = convert(theirs).pooler.attention
    parts = theirs.head.attention.in_proj_weight.split(16)
    for projection, part in zip((ours.q_proj, ours.k_proj, ours.v_proj), parts, strict=True):
        assert torch.equal(projection.weight, part)
