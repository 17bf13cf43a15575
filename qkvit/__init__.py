"""QKViT: a Vision Transformer for transformers whose queries, keys, values and attention maps are outputs.

Importing it registers the model with the Auto classes.
"""

from .configuration import NAMED_SIZES, QKViTConfig
from .modeling import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from .registration import register
from .version import __version__

register()

__all__ = [
    "NAMED_SIZES",
    "QKViTBackbone",
    "QKViTConfig",
    "QKViTForImageClassification",
    "QKViTForMaskedImageModeling",
    "QKViTModel",
    "__version__",
]
