"""What can be asked for: groups of statistics with their fields, and backends."""

import os
from collections.abc import Iterable
from typing import Literal

import torch

from ..token_layout import TokenLayout

Backend = Literal["reference", "cpu", "gpu"]

GROUPS: dict[str, tuple[str, ...]] = {
    "entropy": ("entropy",),
    "maximum": ("maximum", "argmaximum"),
    "received": ("received", "sink_share"),
    "masses": ("on_class_token", "on_registers", "on_prefix", "on_patches", "on_self", "on_neighbours"),
    "place": ("centre", "spread"),
    "distance": ("distance",),
    "similarity": ("head_similarity",),
    "values": (
        "value_norm",
        "weighted_sum",
        "weighted_on_class_token",
        "weighted_on_registers",
        "weighted_on_prefix",
        "weighted_on_patches",
        "weighted_on_self",
        "weighted_received",
        "output_norm",
        "output_share",
    ),
}

# What has N x N numbers is given only by name.
ON_REQUEST: dict[str, tuple[str, ...]] = {"mean_map": ("mean_map",)}

# Those that cost little beside the product of queries and keys.
FUSED = ("entropy", "maximum", "received", "masses", "place")


def asked_groups(
    statistics: str | Iterable[str] | None, has_value: bool, among: Iterable[str] = (*GROUPS, *ON_REQUEST)
) -> frozenset[str]:
    """The names of the groups to compute. `None` asks for all of `GROUPS`; "values" only where values are given.

    A caller who has no use for N x N numbers gives the names to choose from: among=GROUPS.

    Raises:
        ValueError: a name is not a group's, or "values" is asked for and there are none.

    Example:

    ```python
    >>> sorted(asked_groups(["entropy", "maximum"], has_value=False))
    ['entropy', 'maximum']

    ```
    """
    if statistics is None:
        return frozenset(GROUPS) if has_value else frozenset(GROUPS) - {"values"}
    asked = frozenset([statistics] if isinstance(statistics, str) else statistics)
    names = list(among)
    unknown = sorted(map(str, asked.difference(names)))
    if unknown:
        raise ValueError(f"there is no group of statistics {', '.join(unknown)}; choose from {', '.join(names)}")
    if "values" in asked and not has_value:
        raise ValueError('the statistics "values" need the values; pass value=, or leave them out')
    return asked


def row_fields(groups: frozenset[str], layout: TokenLayout) -> list[str]:
    """The fields of `groups` that are read off single rows, for tokens of this layout.

    Example:

    ```python
    >>> row_fields(frozenset(["maximum", "distance"]), TokenLayout(grid=(4, 4)))
    ['maximum', 'argmaximum', 'distance']

    ```
    """
    masses = ["prefix", "patches", "self"]
    masses += ["class_token"] if layout.class_token is not None else []
    masses += ["registers"] if layout.num_register_tokens else []
    found = {
        "entropy": ["entropy"],
        "maximum": ["maximum", "argmaximum"],
        "place": ["centre", "spread"],
        "masses": [*(f"on_{kind}" for kind in masses), "on_neighbours"],
        "distance": ["distance"],
        "values": ["weighted_sum", *(f"weighted_on_{kind}" for kind in masses)],
    }
    return [name for group, names in found.items() if group in groups for name in names]


def interpreted() -> bool:
    """Whether Triton's interpreter stands in for a GPU: TRITON_INTERPRET=1 in the environment from the start."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def backend_for(name: str | None, device: torch.device) -> str:
    """The backend of that name, if it reads tensors on the device; `None` asks for the device's own.

    With Triton's interpreter (TRITON_INTERPRET=1), "gpu" reads tensors on the CPU.

    Raises:
        ValueError: there is no such backend, or it is another device's.
    """
    own = "cpu" if device.type == "cpu" else "gpu"
    if name is None:
        return own
    if name not in ("reference", "cpu", "gpu"):
        raise ValueError(f"there is no backend {name!r}; choose from reference, cpu, gpu")
    if name not in ("reference", own) and not (name == "gpu" and interpreted()):
        raise ValueError(f'backend="{name}" cannot read tensors on {device}; move them, or pass backend="{own}"')
    return name
