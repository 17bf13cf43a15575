"""What only the name of a timm architecture says: heads, activation and epsilon, which its config.json leaves out.

Names are read word by word, and one with an unknown word is refused: a wrong guess would load and compute nonsense.
"""

import re
from collections.abc import Mapping
from typing import Any

from .family import Source

# Width -> heads, of all architectures in vision_transformer.py and deit.py that have one number for a width.
HEADS = {
    64: 2,
    96: 3,
    192: 3,
    256: 4,
    320: 5,
    384: 6,
    512: 8,
    640: 10,
    768: 12,
    832: 13,
    896: 14,
    1024: 16,
    1152: 16,
    1280: 16,
    1408: 16,
    1536: 24,
    1664: 16,
}
# A part of a name -> heads, where the width alone would say something else.
_OTHER_HEADS = {"giantopt": 16, "vit_base_patch16_gap_224": 16}
_GELU_TANH = re.compile(r"siglip.*_512$|so400m_patch16_siglip|vit_base_patch32_siglip|giantopt")
_EXACT_GELU = re.compile(r"vit_base_patch16_siglip_(gap_)?512$")

_SIZES = (
    r"tiny|xsmall|small|medium|mediumd|base|betwixt|large|huge|giant|giantopt|gigantic|little|wee|so150m2?|so400m|"
    r"intern300m"
)
_KNOWN = re.compile(
    rf"(vit|deit3?|flexivit)_({_SIZES})"
    r"(_(patch\d+|\d{3}|distilled|gap|map|clip|quickgelu|siglip|plus|miil|36x1|dinov2|tipsv2|reg\d|radio|v[34]))*"
    r"|eva_large_patch14_(196|336)|test_vit[234]?"
)
_UNLIKE = {
    "rpn": "it normalises the output of each branch, and QKViT the input",
    "xp": "its attention and its MLP stand beside each other in a layer, and in QKViT the MLP follows",
    "18x2": "several attentions and MLPs stand beside each other in its layers, and in QKViT each follows the other",
    "hybrid": "its patches are the output of a convolutional network, and QKViT projects pixels",
    "relpos": "its attention adds a learned bias for each distance of two patches, and QKViT's attention has none",
    "rope": "its rotary positions are not those of DINOv3, which QKViT has",
    "eva02": "its rotary positions are not those of DINOv3, which QKViT has",
}
_STAGES = "it shrinks the grid from stage to stage, and QKViT keeps one grid"
# The start of a tensor's name -> the part of the architecture that QKViT does not have.
_UNLIKE_TENSORS = {
    r"blocks\.0\.in_proj\.": _UNLIKE["xp"],
    r"blocks\.0\.attns\.": _UNLIKE["18x2"],
    r"blocks\.0\.attn\.(relative_position|rel_pos)": _UNLIKE["relpos"],
    r"rel_pos": _UNLIKE["relpos"],
    r"blocks\.0\.attn\.(q_bias|v_bias|inner_attn_ln)": "it is of timm's eva.py or beit.py, whose attention is another",
    r"blocks\.0\.attn\.(q_proj|rope)": "it is of timm's eva.py, whose attention is another",
    r"rope\.": _UNLIKE["rope"],
    r"blocks\.0\.attn\.lambda_q": "its attention is the difference of two maps, and QKViT's is one map",
    r"blocks\.0\.attn\.norm\.": "it normalises the output of attention before the projection, and QKViT does not",
    r"blocks\.0\.attn\.gate\.": "it has a gate on the output of attention, and QKViT has none",
    r"blocks\.0\.mlp\.norm\.": "it normalises within the MLP, and QKViT does not",
    r"blocks\.0\.mlp\.fc1_g\.": "the gate of its MLP is a layer of its own, as in AIMv2, which is not supported",
    r"patch_embed\.norm\.": "it normalises the patches before positions are added, and QKViT does not",
    r"patch_embed\.backbone\.": _UNLIKE["hybrid"],
    r"(stages|layers)\.": _STAGES,
    r"blocks\.0\.0\.": _STAGES,
}


def refuse_unlike(source: Source) -> None:
    """Raise a `ValueError` that says why, if the architecture has a part that QKViT does not have."""
    name = architecture(source.config)
    reason = next((why for word, why in _UNLIKE.items() if word in name.split("_")), None)
    for pattern, why in _UNLIKE_TENSORS.items():
        if any(re.match(pattern, tensor) for tensor in source.shapes):
            reason = why
            break
    if reason is None and not source.has("blocks.0.attn.qkv.weight"):
        reason = "it has no blocks of attention with one matrix for queries, keys and values"
    if reason is not None:
        raise ValueError(
            f"{source.where} is a timm {name!r} model, which cannot become a QKViT: {reason}; convert one of timm's"
            " plain vit_*, deit_* or deit3_* instead"
        )
    if not _KNOWN.fullmatch(name):
        raise ValueError(
            f"{source.where} has the architecture {name!r} of timm, of which it is not known here how many heads and"
            " which activation it has; convert one of timm's plain vit_*, deit_* or deit3_* instead"
        )


def architecture(config: Mapping[str, Any]) -> str:
    """The name of the architecture, without the tag of its weights."""
    return str(config["architecture"]).partition(".")[0]


def heads(name: str, width: int) -> int | None:
    """Attention heads of an architecture; None where its width is none of timm's.

    Example:

    ```python
    >>> heads("vit_so400m_patch14_siglip_384", 1152), heads("vit_giantopt_patch16_siglip_256", 1536)
    (16, 16)

    ```
    """
    return next((number for part, number in _OTHER_HEADS.items() if part in name), HEADS.get(width))


def activation(name: str, packed: bool) -> str:
    """Activation of the MLP, by transformers' name; `packed`: the MLP has a gate.

    Example:

    ```python
    >>> activation("vit_base_patch16_clip_quickgelu_224", packed=False)
    'quick_gelu'

    ```
    """
    if packed:
        return "silu"
    if "quickgelu" in name:
        return "quick_gelu"
    return "gelu_pytorch_tanh" if _GELU_TANH.search(name) and not _EXACT_GELU.search(name) else "gelu"


def epsilon(name: str) -> float:
    """Epsilon of the normalisations."""
    return 1e-5 if "clip" in name.split("_") else 1e-6
