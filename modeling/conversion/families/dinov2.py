"""transformers' `dinov2` (Oquab et al. 2023, arXiv 2304.07193)."""

from typing import Any

from ....configuration.configuration_qkvit import QKViTConfig
from . import dinov2_layout
from .family import Family


def source_config(config: QKViTConfig, kind: str) -> dict[str, Any]:
    return {**dinov2_layout.source_config(config), "use_mask_token": config.use_mask_token}


FAMILY = Family(
    name="dinov2",
    model_types=("dinov2",),
    config_class="Dinov2Config",
    prefixes=("dinov2.",),
    architectures={"model": "Dinov2Model", "classification": "Dinov2ForImageClassification"},
    fields=dinov2_layout.fields,
    source_config=source_config,
    layouts=dinov2_layout.layouts(),
)
