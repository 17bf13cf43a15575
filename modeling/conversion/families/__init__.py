"""Checkpoint families: how the tensors and fields of each map onto QKViT, one file a family.

`family.py` says how such a file is written; a file with an object `FAMILY` is a family, and there is no other list.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from .family import Family


@cache
def families() -> dict[str, Family]:
    """Name -> family, in alphabetical order.

    Example:

    ```python
    >>> families()["vit"].model_types
    ('vit',)

    ```
    """
    modules = [importlib.import_module(f".{found.name}", __name__) for found in pkgutil.iter_modules(__path__)]
    found = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in sorted(found, key=lambda family: family.name)}


def family_of(config: Mapping[str, Any]) -> Family | None:
    """The family that reads a config.json; None if there is none."""
    return next((family for family in families().values() if family.reads(config)), None)
