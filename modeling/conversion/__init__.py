"""Checkpoint conversion: `convert` reads other ViT families into QKViT, and `export` writes them."""

from .exporting import export
from .importing import convert, load_own, model_type_of
from .stream import convert_folder

__all__ = ["convert", "convert_folder", "export", "load_own", "model_type_of"]
