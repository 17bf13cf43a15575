"""The network."""

from ..configuration.configuration_qkvit import QKViTConfig
from .modeling_qkvit import (
    QKViTBackbone,
    QKViTForImageClassification,
    QKViTForMaskedImageModeling,
    QKViTModel,
    QKViTPreTrainedModel,
)
from .shipping import ship_code

QKViTConfig.ship_code = ship_code  # from here on a saved model carries its code

__all__ = [
    "QKViTBackbone",
    "QKViTForImageClassification",
    "QKViTForMaskedImageModeling",
    "QKViTModel",
    "QKViTPreTrainedModel",
]
