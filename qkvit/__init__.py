"""QKViT: a Vision Transformer for transformers whose queries, keys, values and attention maps are outputs.

Importing it registers the model with the Auto classes.
"""

from typing import TYPE_CHECKING, Any

from .configuration import NAMED_SIZES, QKViTConfig
from .modeling import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from .registration import register
from .version import __version__

if TYPE_CHECKING:
    from .modeling.conversion import convert, export

register()


def __getattr__(name: str) -> Any:
    """`convert` and `export`, loaded when they are first used."""
    if name in ("convert", "export"):
        from .modeling import conversion

        return getattr(conversion, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "NAMED_SIZES",
    "QKViTBackbone",
    "QKViTConfig",
    "QKViTForImageClassification",
    "QKViTForMaskedImageModeling",
    "QKViTModel",
    "__version__",
    "convert",
    "export",
]
