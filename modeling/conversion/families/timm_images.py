"""The image processor of a timm model: its `pretrained_cfg` as settings of transformers, and back."""

import math
from collections.abc import Mapping
from typing import Any

# PIL's numbers, which transformers writes.
_FILTERS = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3, "box": 4, "hamming": 5}


def processor_settings(cfg: Mapping[str, Any], image_shape: tuple[int, int]) -> dict[str, Any]:
    """Settings of transformers' image processor that do what timm's evaluation does.

    Square images: the shorter side is resized to size / crop_pct, then the centre is cut out ("center"); or both sides
    are ("squash"). What transformers has no processor for, an oblong centre or one with a border, becomes a plain
    resize.

    Example:

    ```python
    >>> settings = processor_settings({"crop_pct": 0.875, "interpolation": "bilinear"}, (224, 224))
    >>> settings["size"], settings["crop_size"], settings["resample"]
    ({'shortest_edge': 256}, {'height': 224, 'width': 224}, 2)

    ```
    """
    height, width = image_shape
    crop = cfg.get("crop_pct") or 0.875
    scaled = math.floor(height / crop), math.floor(width / crop)
    settings: dict[str, Any] = {
        "do_resize": True,
        "resample": _FILTERS.get(str(cfg.get("interpolation", "bicubic")), 3),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(cfg.get("mean", (0.485, 0.456, 0.406))),
        "image_std": list(cfg.get("std", (0.229, 0.224, 0.225))),
        "do_convert_rgb": True,
    }
    centred = cfg.get("crop_mode", "center") == "center" and height == width
    if not centred and (cfg.get("crop_mode") != "squash" or scaled == image_shape):
        size = {"height": height, "width": width}
        return {**settings, "image_processor_type": "ViTImageProcessor", "size": size}
    return {
        **settings,
        "image_processor_type": "CLIPImageProcessor",
        "size": {"shortest_edge": scaled[0]} if centred else {"height": scaled[0], "width": scaled[1]},
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
    }


def pretrained_cfg(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """The inverse of `processor_settings`."""
    if settings is None:
        return {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "squash"}
    names = {number: name for name, number in _FILTERS.items()}
    size, crop = settings.get("size", {}), settings.get("crop_size") if settings.get("do_center_crop") else None
    edge = size.get("shortest_edge")
    scaled = edge or size.get("height")
    return {
        "mean": list(settings.get("image_mean", [0.5] * 3)),
        "std": list(settings.get("image_std", [0.5] * 3)),
        "interpolation": names.get(settings.get("resample", 3), "bicubic"),
        "crop_pct": _fraction(crop["height"], scaled) if crop and scaled else 1.0,
        "crop_mode": "center" if edge else "squash",
    }


def _fraction(part: int, whole: int) -> float:
    """The roundest number of which floor(part / number) is the whole."""
    return next(
        fraction
        for digits in range(2, 17)
        if (fraction := round(part / whole, digits)) and math.floor(part / fraction) == whole
    )
