"""Tiny models of transformers' own families, with random weights and images for them."""

from collections.abc import Callable

import pytest
import torch
import transformers

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
