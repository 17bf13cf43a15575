"""What follows from the name of an architecture of timm."""

import pytest

from qkvit.modeling.conversion.families.timm_architectures import activation, epsilon, heads


@pytest.mark.parametrize(
    ("name", "width", "expected"),
    [
        ("vit_tiny_patch16_224", 192, (3, "gelu", 1e-6)),
        ("vit_large_patch14_clip_336", 1024, (16, "gelu", 1e-5)),
        ("vit_large_patch14_clip_quickgelu_336", 1024, (16, "quick_gelu", 1e-5)),
        ("vit_so400m_patch14_siglip_384", 1152, (16, "gelu", 1e-6)),
        ("vit_so400m_patch16_siglip_384", 1152, (16, "gelu_pytorch_tanh", 1e-6)),
        ("vit_base_patch16_siglip_512", 768, (12, "gelu", 1e-6)),
        ("vit_large_patch16_siglip_512", 1024, (16, "gelu_pytorch_tanh", 1e-6)),
        ("vit_giantopt_patch16_siglip_256", 1536, (16, "gelu_pytorch_tanh", 1e-6)),
        ("vit_base_patch16_gap_224", 768, (16, "gelu", 1e-6)),
        ("vit_base_patch16_siglip_gap_224", 768, (12, "gelu", 1e-6)),
    ],
)
def test_heads_activation_and_epsilon_follow_from_the_name(name, width, expected):
    assert (heads(name, width), activation(name, packed=False), epsilon(name)) == expected
