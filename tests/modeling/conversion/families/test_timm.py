"""timm's vision transformers, against a reference forward of our own: needs no timm (`test_timm_itself.py` does)."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import assert_same_tensors, check_every_tensor, check_outputs, difference, flat, images
from safetensors.torch import save_file
from timm_reference import DEFAULTS, Tensors, forward, random_tensors
from torch import nn

from qkvit import QKViTConfig, QKViTForImageClassification, QKViTModel
from qkvit.modeling.conversion import convert, export


@dataclass(frozen=True)
class TimmCase:
    """A model of an architecture with options; `args` are the model_args of its config.json.

    It offers what `harness.Case` does, with the reference in the place of their model.
    """

    architecture: str
    option: str
    options: dict[str, Any] = field(default_factory=dict)
    args: dict[str, Any] = field(default_factory=dict)
    sizes: tuple[tuple[int, int], ...] = ((16, 16), (12, 12), (24, 16))
    family: str = "timm"
    still: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.architecture}-{self.option}"

    @property
    def all_options(self) -> dict[str, Any]:
        return {**DEFAULTS, **self.options}

    @property
    def config(self) -> dict[str, Any]:
        """config.json as timm writes it."""
        o = self.all_options
        args = {"img_size": list(o["img_size"]), "num_heads": o["num_heads"], **self.args}
        return {
            "architecture": self.architecture,
            "num_classes": o["num_classes"],
            "num_features": o["embed_dim"],
            "global_pool": o["global_pool"],
            "model_args": args,
            "pretrained_cfg": {
                "input_size": [3, *o["img_size"]],
                "interpolation": "bicubic",
                "crop_pct": 0.9,
                "crop_mode": "center",
                "mean": [0.1, 0.2, 0.3],
                "std": [0.4, 0.5, 0.6],
            },
        }

    def model(self, dtype: torch.dtype = torch.float64) -> "InMemory":
        tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(self.all_options).items()}
        return InMemory(self.config, tensors)

    def theirs(self, model: "InMemory", pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return flat(forward(model.tensors, self.all_options, pixels))

    def ours(self, model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
        return run(model, pixels)

    def check_attention(self) -> float:
        """Queries, keys, values and maps against the reference; the largest difference of the first three."""
        theirs, pixels = self.model(), images(*self.sizes[0])
        expected = forward(theirs.tensors, self.all_options, pixels)
        with torch.no_grad():
            found = convert(theirs)(pixels, output_qkv=True, output_attentions=True)
        largest = 0.0
        for name in ("queries", "keys", "values", "attentions"):
            for own, other in zip(found[name], expected[name], strict=True):
                torch.testing.assert_close(own, other, rtol=0, atol=1e-10)
                if name != "attentions":
                    largest = max(largest, float((own - other).abs().max() / other.abs().max()))
        return largest

    def folder(self, path: Path, dtype: torch.dtype = torch.float64, **others) -> Path:
        """A folder in timm's style."""
        path.mkdir(parents=True)
        tensors = {name: tensor.to(dtype) for name, tensor in random_tensors(self.all_options).items()}
        save_file(tensors, path / "model.safetensors")
        (path / "config.json").write_text(json.dumps({**self.config, **others}))
        return path


REGISTERS = {"class_token": False, "reg_tokens": 3, "no_embed_class": True, "global_pool": "avg", "norm": "fc_norm"}
CLIP = {"pre_norm": True, "eps": 1e-5, "act": "quick_gelu"}
SIGLIP = {"class_token": False, "global_pool": "map", "act": "gelu_tanh"}
CASES = [
    TimmCase("vit_tiny_patch16_224", "plain"),
    TimmCase("deit_tiny_distilled_patch16_224", "two classifiers", {"distilled": True}),
    TimmCase("deit3_small_patch16_224", "LayerScale", {"no_embed_class": True, "layer_scale": True}),
    TimmCase("vit_medium_patch16_reg4_gap_256", "registers", REGISTERS),
    TimmCase(
        "vit_base_patch14_reg4_dinov2",
        "class token and registers",
        {"reg_tokens": 2, "layer_scale": True, "no_embed_class": True},
    ),
    TimmCase("vit_base_patch16_224", "registers with positions", {"reg_tokens": 2}, {"reg_tokens": 2}),
    TimmCase("vit_base_patch16_clip_quickgelu_224", "clip", CLIP),
    TimmCase("vit_so400m_patch16_siglip_256", "siglip", SIGLIP),
    TimmCase("vit_so150m_patch16_reg4_map_256", "map", {**SIGLIP, "reg_tokens": 2, "act": "gelu"}),
    TimmCase("test_vit3", "map of all", {"global_pool": "map", "reg_tokens": 1, "pool_include_prefix": True}),
    TimmCase("vit_giant_patch14_dinov2", "packed gate", {"packed": True, "layer_scale": True, "num_classes": 0}),
    TimmCase("vit_base_patch16_siglip_gap_224", "mean", {"class_token": False, "global_pool": "avg"}),
    TimmCase("vit_base_patch16_224", "mean, class token", {"global_pool": "avg", "norm": "fc_norm"}),
    TimmCase(
        "vit_base_patch16_224",
        "rms, qk_norm, no biases",
        {"rms": True, "qk_norm": True, "qkv_bias": False, "proj_bias": False},
        {"norm_layer": "rmsnorm", "qk_norm": True, "qkv_bias": False, "proj_bias": False},
    ),
    TimmCase("vit_base_patch16_radio_v3", "no norm", {"norm": None, "num_classes": 0, "no_embed_class": True}),
    TimmCase("vit_base_patch16_224", "no positions", {"pos_embed": "none"}, {"pos_embed": "none"}),
    TimmCase(
        "vit_base_patch16_224",
        "oblong, another act",
        {"img_size": (16, 24), "patch_size": (4, 8), "act": "gelu_tanh"},
        {"act_layer": "gelu_tanh", "patch_size": [4, 8]},
        sizes=((16, 24), (8, 40)),
    ),
]
# Together these have a tensor of every kind.
EVERY_TENSOR = [CASES[index] for index in (1, 4, 6, 8, 10, 13)]


class InMemory(nn.Module):
    """Tensors and a config in the place of a model."""

    def __init__(self, config: dict[str, Any], tensors: Tensors) -> None:
        super().__init__()
        self.config: Any = type("Config", (), {"to_dict": lambda self: config})()
        self.tensors = tensors

    def state_dict(self, *args, **kwargs):
        return self.tensors


def run(model: nn.Module, pixels: torch.Tensor) -> dict[str, torch.Tensor]:
    with torch.no_grad():
        return flat(model(pixels, output_hidden_states=True))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_outputs_are_those_of_the_reference(case, dtype):
    check_outputs(case, dtype)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_queries_keys_values_and_maps_are_those_of_the_reference(case):
    case.check_attention()


@pytest.mark.parametrize("case", EVERY_TENSOR, ids=str)
def test_every_tensor_matters(case):
    check_every_tensor(case)


def test_the_cases_have_a_tensor_of_every_kind():
    ending = {name.split(".", 2)[-1] if name.startswith("blocks.") else name for case in CASES
              for name in random_tensors(case.all_options)}  # fmt: skip
    tested = {name.split(".", 2)[-1] if name.startswith("blocks.") else name for case in EVERY_TENSOR
              for name in random_tensors(case.all_options)}  # fmt: skip
    assert ending - tested <= {"fc_norm.weight", "fc_norm.bias"}


@pytest.mark.parametrize(
    ("case", "dtype"), [*((case, torch.bfloat16) for case in CASES), (CASES[0], torch.float32)], ids=str
)
def test_all_tensors_come_back_to_the_bit(case, dtype, tmp_path):
    source = case.folder(tmp_path / "source", dtype)
    ours = convert(source)
    assert_same_tensors(source, export(ours, tmp_path / "out"))
    ours.save_pretrained(tmp_path / "saved")
    again = type(ours).from_pretrained(tmp_path / "saved")
    assert_same_tensors(source, export(again, tmp_path / "again"))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_what_is_exported_converts_to_the_same_model(case, tmp_path):
    ours = convert(case.folder(tmp_path / "source"))
    written = json.loads((export(ours, tmp_path / "out") / "config.json").read_text())
    assert written["architecture"] == case.architecture
    again, pixels = convert(tmp_path / "out"), images(*case.sizes[-1])
    assert difference(run(again, pixels), run(ours, pixels)) < 1e-12
    assert {**again.config.to_dict(), "label2id": None} == {**ours.config.to_dict(), "label2id": None}


# ---- what comes along


def test_a_classifier_becomes_one_with_its_labels(tmp_path):
    ours = convert(CASES[0].folder(tmp_path / "source", label_names=["cat", "dog", "owl"]))
    assert isinstance(ours, QKViTForImageClassification)
    assert ours.config.id2label == {0: "cat", 1: "dog", 2: "owl"}
    written = json.loads((export(ours, tmp_path / "out") / "config.json").read_text())
    assert written["label_names"] == ["cat", "dog", "owl"]


def test_a_model_without_classes_becomes_one(tmp_path):
    assert type(convert(CASES[10].folder(tmp_path / "source"))) is QKViTModel


def test_mean_deviation_size_and_crop_come_along_and_back(tmp_path):
    ours = convert(CASES[0].folder(tmp_path / "source"))
    ours.save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "preprocessor_config.json").read_text())
    assert settings["image_mean"] == [0.1, 0.2, 0.3]
    assert settings["image_std"] == [0.4, 0.5, 0.6]
    assert settings["size"] == {"shortest_edge": 17}  # 16 / 0.9, the whole part
    assert settings["crop_size"] == {"height": 16, "width": 16}
    written = json.loads((export(ours, tmp_path / "out") / "config.json").read_text())["pretrained_cfg"]
    assert written["mean"] == [0.1, 0.2, 0.3]
    assert written["interpolation"] == "bicubic"
    assert int(16 / written["crop_pct"]) == 17


def test_the_image_processor_resizes_the_shorter_side_and_cuts_out_the_centre(tmp_path):
    from PIL import Image
    from transformers import AutoImageProcessor

    ours = convert(CASES[0].folder(tmp_path / "source"))
    ours.save_pretrained(tmp_path / "saved")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "saved", use_fast=False)
    pixels = processor(Image.new("RGB", (50, 30), (255, 0, 255)), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    torch.testing.assert_close(pixels[0, :, 0, 0], torch.tensor([0.9 / 0.4, -0.2 / 0.5, 0.7 / 0.6]))


def test_the_tag_of_the_weights_is_no_part_of_the_architecture(tmp_path):
    case = TimmCase("vit_base_patch16_clip_224.openai", "tag", {**CLIP, "act": "gelu"})
    assert convert(case.folder(tmp_path / "source")).config.layer_norm_eps == 1e-5


def test_a_grid_that_the_config_does_not_state_is_taken_for_a_square(tmp_path):
    case = TimmCase("vit_base_patch16_224", "stale size", args={"img_size": [224, 224]})
    assert convert(case.folder(tmp_path / "source")).config.image_shape == (16, 16)


# ---- what is refused


@pytest.mark.parametrize(
    ("architecture", "tensor", "reason"),
    [
        ("vit_base_patch16_xp_224", None, "beside each other"),
        ("vit_base_patch16_rpn_224", None, "normalises the output of each branch"),
        ("vit_base_r50_s16_224", "patch_embed.backbone.stem.conv.weight", "convolutional network"),
        ("vit_relpos_base_patch16_224", "blocks.0.attn.rel_pos.mlp.fc1.weight", "learned bias for each distance"),
        ("vit_base_patch16_rope_224", None, "rotary"),
        ("eva02_base_patch14_224", None, "rotary"),
        ("beit_base_patch16_224", "blocks.0.attn.q_bias", "eva.py or beit.py"),
        ("vit_dwee_patch16_reg1_gap_256", "blocks.0.attn.lambda_q1", "difference of two maps"),
        ("vit_base_patch16_224", "blocks.0.mlp.norm.weight", "normalises within the MLP"),
        ("aimv2_large_patch14_224", "patch_embed.norm.weight", "before positions are added"),
        ("vit_new_patch16_224", None, "not known here"),
        ("resnet50", None, "not known here"),
    ],
)
def test_another_architecture_is_refused_in_a_sentence_that_says_why(
    raises_sentence, tmp_path, architecture, tensor, reason
):
    case = TimmCase(architecture, "refused")
    tensors = random_tensors(case.all_options) | ({} if tensor is None else {tensor: torch.zeros(1)})
    with raises_sentence(ValueError, repr(architecture), reason):
        convert(InMemory(case.config, tensors))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ({"global_pool": "avgmax"}, ["global_pool='avgmax'", "token, avg, map"]),
        ({"act_layer": "mish"}, ["act_layer='mish'", "gelu"]),
        ({"norm_layer": "batchnorm2d"}, ["norm_layer='batchnorm2d'", "layernorm"]),
        ({"num_heads": None}, ["16 wide", "num_heads"]),
    ],
)
def test_arguments_that_qkvit_has_no_place_for_are_refused(raises_sentence, args, words):
    case = TimmCase("vit_base_patch16_224", "refused", args=args)
    with raises_sentence(ValueError, *words):
        convert(InMemory(case.config, random_tensors(case.all_options)))


def test_positions_that_are_no_grid_are_refused(raises_sentence):
    case = TimmCase("vit_base_patch16_224", "refused")
    tensors = random_tensors(case.all_options)
    tensors["pos_embed"] = tensors["pos_embed"][:, :-3]
    with raises_sentence(ValueError, "pos_embed", "14 positions", "img_size"):
        convert(InMemory(case.config, tensors))


def test_missing_and_unknown_tensors_are_named(raises_sentence):
    case = TimmCase("vit_base_patch16_224", "refused")
    tensors = random_tensors(case.all_options)
    tensors["extra.weight"] = tensors.pop("blocks.1.norm2.bias")
    with raises_sentence(ValueError, "missing: blocks.1.norm2.bias", "unknown: extra.weight"):
        convert(InMemory(case.config, tensors))


TIMM_LIKE = {"position_antialias": True, "position_float32": True}


@pytest.mark.parametrize(
    "fields",
    [
        {"head_dim": 4},
        {"patch_bias": False},
        {"mlp_bias": False},
        {"key_bias": False},
        {"num_register_tokens": 2},
        {"pooling": "class_mean"},
        {"position_embedding": "rope2d"},
        {"position_antialias": False},
        {"layer_norm_eps": 1e-3},
        {"use_mask_token": True},
        {"pooler_act": "tanh"},
    ],
)
def test_what_timm_has_no_place_for_is_not_exported(raises_sentence, tiny_config, tmp_path, fields):
    ours = QKViTModel(tiny_config(**{**TIMM_LIKE, **fields}))
    word = {"use_mask_token": "mask_token", "pooler_act": "pooler", "num_register_tokens": "position_coverage"}
    name = next(iter(fields))
    with raises_sentence(ValueError, word.get(name, name)):
        export(ours, tmp_path / "out", family="timm")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_distillation_token": True},
        {"mlp_type": "swiglu", "layer_scale_init_value": 0.0},
        {"layer_norm_eps": 1e-5, "use_pre_norm": True, "patch_bias": False},
        {"pooling": "attention", "use_class_token": False, "num_register_tokens": 2, "position_coverage": "all"},
        {"pooling": "mean", "norm_position": "after_pooling", "norm_type": "rmsnorm", "intermediate_size": 71},
        {"position_embedding": "none", "norm_position": "none", "hidden_act": "quick_gelu"},
    ],
)
def test_a_model_of_our_own_goes_to_timm_and_back(tiny_model, pixels, tmp_path, fields):
    for model_class in (QKViTModel, QKViTForImageClassification):
        ours = tiny_model(model_class, **TIMM_LIKE, **fields)
        folder = export(ours, tmp_path / model_class.__name__, family="timm")
        again = convert(folder)
        assert type(again) is model_class
        found, expected = run(again, pixels), run(ours, pixels)
        assert found.keys() == expected.keys()
        assert difference(found, expected) < 1e-6


def test_a_config_that_is_not_timms_is_none_of_this_family():
    from qkvit.modeling.conversion.families import family_of

    assert family_of({"architectures": ["ViTModel"], "model_type": "vit"}).name == "vit"
    assert family_of({"architecture": "vit_base_patch16_224"}).name == "timm"
    assert family_of(QKViTConfig().to_dict()) is None
