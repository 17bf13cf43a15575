"""Packages that a command needs, asked for before any work is done."""

import importlib.util

from .errors import UserError


def check_packages(needed: dict[str, str]) -> None:
    """Refuse to start when a package that is needed later is missing; `needed` is module -> package."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(dict.fromkeys(needed[name] for name in missing))
        raise UserError(f"{', '.join(missing)} cannot be imported; run: pip install {packages}")
