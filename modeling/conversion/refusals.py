"""Why a model that is none of the families cannot be converted, in one sentence."""

from collections.abc import Mapping
from typing import Any

from ...configuration.errors_qkvit import shown
from .families import families, family_of

_RELATIVE = "its attention adds a learned bias for each distance of two patches, and QKViT's attention has none"
_WINDOWS = (
    "it attends within windows and merges patches from stage to stage, and QKViT attends from every patch to every"
)
_STAGES = "it shrinks the grid from stage to stage, and QKViT keeps one grid"
_VIDEO = "it takes videos, and QKViT takes images"
_NO_ATTENTION = "it is not an attention model of plain tokens"

# model_type -> the part of the architecture that QKViT does not have.
REASONS: dict[str, str] = {
    "beit": _RELATIVE,
    "data2vec-vision": _RELATIVE,
    "swin": _WINDOWS,
    "swinv2": _WINDOWS,
    "donut-swin": _WINDOWS,
    "maskformer-swin": _WINDOWS,
    "hiera": _WINDOWS,
    "dinat": "it attends within neighbourhoods, and QKViT attends from every patch to every",
    "pvt": _STAGES,
    "pvt_v2": _STAGES,
    "mobilevit": _STAGES,
    "mobilevitv2": _STAGES,
    "cvt": _STAGES,
    "levit": _STAGES,
    "segformer": _STAGES,
    "efficientformer": _STAGES,
    "poolformer": _NO_ATTENTION,
    "convnext": _NO_ATTENTION,
    "convnextv2": _NO_ATTENTION,
    "resnet": _NO_ATTENTION,
    "dinov3_convnext": _NO_ATTENTION,
    "vit_hybrid": "its patches are the output of a convolutional network, and QKViT projects pixels",
    "vitdet": "it attends within windows and adds relative positions, and QKViT does neither",
    "sam_vision_model": "it attends within windows and adds relative positions, and QKViT does neither",
    "videomae": _VIDEO,
    "vivit": _VIDEO,
    "timesformer": _VIDEO,
    "vjepa2": _VIDEO,
    "bit": _NO_ATTENTION,
}


def why_not(config: Mapping[str, Any], where: str) -> str:
    """The sentence about a config.json that no family reads.

    Example:

    ```python
    >>> print(why_not({"model_type": "swin"}, "a/folder").split(":")[0])
    a/folder is a 'swin' model, which cannot become a QKViT

    ```
    """
    model_type = config.get("model_type")
    if isinstance(model_type, str) and model_type in REASONS:
        return (
            f"{where} is a {model_type!r} model, which cannot become a QKViT: {REASONS[model_type]}; convert one of"
            f" {', '.join(families())} instead"
        )
    if model_type == "qkvit":
        return (
            f"{where} is a QKViT already: load it with AutoModel.from_pretrained, or write it out for others with qkvit"
            " convert --to FAMILY"
        )
    what = "states no model_type" if model_type is None else f"is a {shown(model_type)} model"
    return f"{where} {what}, and no family reads it: convert one of {', '.join(families())}"


def how_to_convert(config: Mapping[str, Any], where: str) -> str | None:
    """The sentence for who loads a checkpoint of another family as if it were a QKViT; None if no family reads it.

    Example:

    ```python
    >>> print(how_to_convert({"model_type": "dinov2"}, "a/folder"))
    a/folder is a 'dinov2' checkpoint and no QKViT yet; run `qkvit convert a/folder FOLDER`, or call qkvit.convert

    ```
    """
    family = family_of(config)
    if family is None:
        return None
    way_in = f"run `qkvit convert {where} FOLDER`, or call qkvit.convert"
    return f"{where} is a {family.name!r} checkpoint and no QKViT yet; {way_in}"
