"""The configuration of QKViT and its named sizes."""

from .configuration_qkvit import NAMED_SIZES, QKViTConfig

__all__ = ["NAMED_SIZES", "QKViTConfig"]
