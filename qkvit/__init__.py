"""QKViT: a Vision Transformer for transformers whose queries, keys, values and attention maps are outputs.

Importing it registers the model with the Auto classes.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .startup import is_command, stop_at_once
from .version import __version__

if TYPE_CHECKING:
    from .modeling.conversion import convert, export

if TYPE_CHECKING or not is_command():
    from .configuration import NAMED_SIZES, QKViTConfig
    from .modeling import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
    from .registration import register

    register()
else:
    stop_at_once()


def __getattr__(name: str) -> Any:
    """What is loaded when it is first used: `convert` and `export`; in the command, all public names."""
    folder = {"convert": ".modeling.conversion", "export": ".modeling.conversion"}.get(name)
    if folder is None and name in __all__:
        folder = ".configuration" if name in ("NAMED_SIZES", "QKViTConfig") else ".modeling"
    if folder is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(folder, __name__), name)


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
