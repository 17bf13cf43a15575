"""The network."""

from typing import Any

from ..configuration.configuration_qkvit import QKViTConfig
from .modeling_qkvit import (
    QKViTBackbone,
    QKViTForImageClassification,
    QKViTForMaskedImageModeling,
    QKViTModel,
    QKViTPreTrainedModel,
)
from .shipping import ship_code


def _how_to_convert(config: dict[str, Any], where: str) -> str | None:
    if config.get("model_type") == QKViTConfig.model_type:
        return None
    from .conversion.refusals import how_to_convert  # with all families, which only this needs

    return how_to_convert(config, where)


QKViTConfig.ship_code = ship_code  # from here on a saved model carries its code
QKViTConfig.how_to_convert = _how_to_convert

__all__ = [
    "QKViTBackbone",
    "QKViTForImageClassification",
    "QKViTForMaskedImageModeling",
    "QKViTModel",
    "QKViTPreTrainedModel",
]
