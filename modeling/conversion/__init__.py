"""Checkpoint conversion: `convert` reads other ViT families into QKViT, and `export` writes them."""

from .exporting import check_choices, export
from .importing import convert, load_own, model_type_of
from .stream import convert_folder

__all__ = ["check_choices", "convert", "convert_folder", "export", "load_own", "model_type_of"]
