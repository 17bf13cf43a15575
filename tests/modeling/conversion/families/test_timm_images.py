"""timm's words for crop and size, as an image processor's and back."""

import pytest

from qkvit.modeling.conversion.families.timm_images import pretrained_cfg, processor_settings


@pytest.mark.parametrize(
    ("cfg", "shape"),
    [
        ({"crop_pct": 0.875, "interpolation": "bilinear", "crop_mode": "center"}, (224, 224)),
        ({"crop_pct": 0.9, "interpolation": "bicubic", "crop_mode": "center"}, (224, 224)),
        ({"crop_pct": 0.95, "interpolation": "bicubic", "crop_mode": "squash"}, (256, 256)),
        ({"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "squash"}, (384, 384)),
        ({"crop_pct": 1.0, "interpolation": "bicubic", "crop_mode": "center"}, (448, 448)),
    ],
)
def test_the_crop_comes_back_as_it_was(cfg, shape):
    back = pretrained_cfg(processor_settings(cfg, shape))
    assert {name: back[name] for name in cfg} == cfg
