"""DINOv3: rotary positions, registers, biases of choice, the gated MLP, the mask token."""

import pytest
import torch
from harness import MLP, Case, check_attention, check_every_tensor, check_outputs, check_round_trip, images
from transformers import DINOv3ViTBackbone, DINOv3ViTConfig, DINOv3ViTModel

from qkvit import QKViTConfig, QKViTModel
from qkvit.modeling.conversion import convert, export

SIZE = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
MASK = "mask_token"
# With no registers there is a tensor of them without numbers.
NO_REGISTERS = "register_tokens"


def model(model_class=DINOv3ViTModel, **options) -> torch.nn.Module:
    return model_class(DINOv3ViTConfig(**{**SIZE, **MLP, **options}))


def not_square() -> torch.nn.Module:
    try:
        return model(hidden_size=24, patch_size=(4, 8), image_size=(16, 32), num_register_tokens=2)
    except TypeError:  # of transformers 5.17
        pytest.skip("this version of transformers divides image_size by patch_size, which must be numbers")


CASES = [
    Case("dinov3_vit", "plain", model, still=(MASK, NO_REGISTERS)),
    Case("dinov3_vit", "registers", lambda: model(num_register_tokens=3), still=(MASK,)),
    Case("dinov3_vit", "masked", lambda: model(num_register_tokens=1), masked=True),
    Case(
        "dinov3_vit",
        "gated",
        lambda: model(use_gated_mlp=True, hidden_act="silu", num_register_tokens=2),
        still=(MASK,),
    ),
    Case(
        "dinov3_vit",
        "all biases, another base",
        lambda: model(key_bias=True, rope_theta=17.0, num_register_tokens=2),
        still=(MASK,),  # positions turn the keys with their bias: here it matters
    ),
    Case(
        "dinov3_vit",
        "no biases",
        lambda: model(query_bias=False, value_bias=False, proj_bias=False, mlp_bias=False, num_register_tokens=2),
        still=(MASK,),
    ),
    Case(
        "dinov3_vit",
        "heads of 12",
        not_square,
        sizes=((16, 32), (24, 24), (16, 56)),
        still=(MASK,),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_outputs_are_the_same(case, dtype):
    check_outputs(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_queries_keys_values_and_maps_are_the_same(case):
    check_attention(case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_tensor_matters(case):
    check_every_tensor(case)


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_tensors_come_back_to_the_bit(case, dtype, tmp_path):
    check_round_trip(case, tmp_path, dtype=dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_transformers_loads_what_is_exported(case, tmp_path):
    theirs = case.model(torch.float32)
    again, report = DINOv3ViTModel.from_pretrained(export(convert(theirs), tmp_path / "out"), output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    pixels = images(*case.sizes[1], torch.float32)
    expected = theirs(pixels).last_hidden_state
    torch.testing.assert_close(again.eval()(pixels).last_hidden_state, expected, rtol=1e-4, atol=1e-5)


def test_a_square_size_is_written_as_one_number(tmp_path):
    """Also where it was given as two: transformers 5.17 divides one by the other."""
    fields = {**SIZE, "image_size": (16, 16), "patch_size": (4, 4), "layer_scale_init_value": 1.0}
    ours = QKViTModel(QKViTConfig(**fields, position_embedding="rope2d")).eval()
    theirs = DINOv3ViTModel.from_pretrained(export(ours, tmp_path / "out", family="dinov3_vit")).eval()
    assert (theirs.config.image_size, theirs.config.patch_size) == (16, 4)
    pixels = images(16, 16, torch.float32)
    torch.testing.assert_close(theirs(pixels).last_hidden_state, ours(pixels).last_hidden_state, rtol=1e-4, atol=1e-5)


def test_a_backbone_becomes_a_model():
    theirs = model(DINOv3ViTBackbone, num_register_tokens=2).eval()
    pixels = images(16, 16, torch.float32)
    ours = convert(theirs)(pixels).last_hidden_state[:, 3:].transpose(1, 2).unflatten(-1, (4, 4))
    torch.testing.assert_close(ours, theirs(pixels).feature_maps[-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fields", [{"position_embedding": "learned"}, {"layer_scale_init_value": None}, {"qk_norm": True}]
)
def test_what_dinov3_has_no_place_for_is_named(raises_sentence, tmp_path, fields):
    ours = QKViTModel(QKViTConfig(**{**SIZE, "position_embedding": "rope2d", "layer_scale_init_value": 1.0, **fields}))
    with raises_sentence(ValueError, next(iter(fields)), "'dinov3_vit'"):
        export(ours, tmp_path / "out", family="dinov3_vit")
