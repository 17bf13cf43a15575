"""Tiny models of transformers' own families with random weights, and a run of `collect` over seven images."""

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import qkvit
from qkvit.analysis import Collected, collect
from qkvit.analysis.accumulators import RELATIVE_ACCURACY
from qkvit.analysis.collected import SHARES
from qkvit.analysis.tally import VECTORS
from qkvit.data import ImageSource, batches, open_images

SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 16, "patch_size": 4}
MLP = {"intermediate_size": 48}
TEXT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "vocab_size": 64, **MLP}

# Name -> (config class, model class, further fields, tokens before the patches).
FAMILIES = {
    "ViT": ("ViTConfig", "ViTModel", MLP, 1),
    "DeiT": ("DeiTConfig", "DeiTModel", MLP, 2),
    "DINOv2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}, 1),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"mlp_ratio": 2}, 5),
    "DINOv3": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 3, **MLP}, 4),
    "CLIP vision": ("CLIPVisionConfig", "CLIPVisionModel", MLP, 1),
    "SigLIP vision": ("SiglipVisionConfig", "SiglipVisionModel", MLP, 0),
    "I-JEPA": ("IJepaConfig", "IJepaModel", MLP, 0),
    "MSN": ("ViTMSNConfig", "ViTMSNModel", MLP, 1),
    "AIMv2": ("Aimv2VisionConfig", "Aimv2VisionModel", MLP, 0),
}


@pytest.fixture(params=FAMILIES)
def family(request) -> str:
    return request.param


@pytest.fixture
def family_model() -> Callable[..., torch.nn.Module]:
    """`family_model("DeiT", **fields)`: in eval mode, the same weights each time, large enough to matter."""

    def make(family: str, **fields) -> torch.nn.Module:
        config_class, model_class, more, _ = FAMILIES[family]
        config = getattr(transformers, config_class)(**{**SIZES, **more, "initializer_range": 0.2, **fields})
        torch.manual_seed(0)
        return getattr(transformers, model_class)(config).eval()

    return make


@pytest.fixture
def prefix_tokens() -> dict[str, int]:
    """How many tokens each family has before the patches."""
    return {name: prefix for name, (_, _, _, prefix) in FAMILIES.items()}


@pytest.fixture
def two_towers() -> Callable[[str], torch.nn.Module]:
    """`two_towers("CLIP")`: a model of images and texts."""

    def make(family: str) -> torch.nn.Module:
        config_class, model_class = {
            "CLIP": (transformers.CLIPConfig, transformers.CLIPModel),
            "SigLIP": (transformers.SiglipConfig, transformers.SiglipModel),
        }[family]
        torch.manual_seed(0)
        text = {**TEXT, "max_position_embeddings": 8, "num_hidden_layers": 2, "eos_token_id": 1, "pad_token_id": 0}
        config = config_class(text_config=text, vision_config={**SIZES, **MLP})
        return model_class(config).eval()

    return make


# ---- for collect


@pytest.fixture
def model(tiny_model) -> torch.nn.Module:
    return tiny_model(qkvit.QKViTModel, num_register_tokens=1)


@pytest.fixture
def source(tmp_path) -> ImageSource:
    """Seven images of three classes, of which one has a single image."""
    generator = np.random.default_rng(0)
    for name, count in {"cat": 4, "dog": 1, "owl": 2}.items():
        (tmp_path / "pets" / name).mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pets" / name / f"{index}.png")
    return open_images(tmp_path / "pets", on_bad_image="skip")


@pytest.fixture
def to_tensor() -> Callable[[Image.Image], torch.Tensor]:
    """What makes pixel values of an image."""
    return lambda image: torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1) / 127.5 - 1


@pytest.fixture
def over(to_tensor) -> Callable[..., Iterable]:
    """`over(source, batch_size)`: batches of the images."""
    return lambda source, batch_size=3, **options: batches(source, to_tensor, batch_size, **options)


@pytest.fixture
def quiet() -> Callable[..., Collected]:
    """`collect` without its bar."""
    return lambda model, dataloader, **options: collect(model, dataloader, show_progress=False, **options)


@pytest.fixture
def biased_model() -> transformers.BeitModel:
    """Whose scores have a large bias for each relative position, which arrives as a mask."""
    fields = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.BeitConfig(**fields, image_size=16, patch_size=4, use_relative_position_bias=True)
    model = transformers.BeitModel(config, add_pooling_layer=False).eval()
    for name, parameter in model.named_parameters():
        if "relative_position_bias_table" in name:
            torch.nn.init.normal_(parameter, std=3.0)
    return model


@pytest.fixture
def next_bin() -> float:
    """From the middle of a quantile's bin to that of the next, relative."""
    return 2.1 * RELATIVE_ACCURACY


@pytest.fixture
def assert_same(next_bin) -> Callable[[Collected, Collected], None]:
    """Every number to 1e-6, quantiles to their sketch's accuracy: where rounding moves a number to the next bin."""

    def check(one: Collected, other: Collected) -> None:
        assert one.images == other.images
        assert one.statistics == other.statistics
        for statistic in one.statistics:
            for what in ("mean", "standard_deviation", "half_interval", "class_mean"):
                first, second = getattr(one, what)(statistic), getattr(other, what)(statistic)
                message = f"{what} {statistic}"
                torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6, equal_nan=True, msg=message)
            for what, share in itertools.product(("quantile", "class_quantile"), SHARES.values()):
                if what == "class_quantile" and not one.class_names:
                    continue
                first, second = getattr(one, what)(statistic, share), getattr(other, what)(statistic, share)
                message = f"{what} {share} of {statistic}"
                torch.testing.assert_close(first, second, rtol=next_bin, atol=1e-6, equal_nan=True, msg=message)
        for name in VECTORS:
            for first, second in zip(one.vectors(name), other.vectors(name), strict=True):
                torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-6)
        for name in ("received", "outliers", *(["rollout"] if "rollout_entropy" in one.statistics else [])):
            torch.testing.assert_close(one.map(name), other.map(name), rtol=1e-6, atol=1e-6)

    return check
