"""The fused CPU path: `cpu_kernels.c` reads a row of attention while it is in a core's first cache.

Products of matrices stay torch's. What comes out is what `tile.py` gives, in the same fields.

Shapes: B images, H heads, N tokens, P patches, X tokens before them, C width of the model; g images times heads and
t queries of a tile.
"""

import ctypes

import torch

from ..token_layout import TokenLayout
from .cpu_library import library
from .grid import Grid
from .groups import row_fields
from .tile import Attention

MOST_HEADS = 256

_COUNTS = (
    *("groups", "queries", "patches", "prefix", "tokens", "columns", "first", "threads", "class_token", "registers"),
)
_TENSORS = ("scores", "prefix_scores", "places", "distances", "norms", "share", "inverse_sum")
_FIELDS = (
    *("entropy", "maximum", "spread", "distance", "centre", "argmaximum", "on_prefix", "on_patches", "on_self"),
    *("on_class_token", "on_registers", "on_neighbours", "weighted_sum", "weighted_on_prefix", "weighted_on_patches"),
    *("weighted_on_self", "weighted_on_class_token", "weighted_on_registers"),
)


class _Rows(ctypes.Structure):
    """`Rows` of cpu_kernels.c."""

    _fields_ = [(name, ctypes.c_int64) for name in _COUNTS] + [
        (name, ctypes.c_void_p) for name in (*_TENSORS, *_FIELDS)
    ]


def suits(dtype: torch.dtype, device: torch.device, num_heads: int) -> bool:
    """Whether the kernels can take it: float32 on a CPU for which they could be compiled."""
    return dtype == torch.float32 and device.type == "cpu" and num_heads <= MOST_HEADS and library() is not None


def room_for_rows(groups: frozenset[str], layout: TokenLayout, query: torch.Tensor) -> dict[str, torch.Tensor]:
    """Room for the fields: (B, H, N), the centre (B, H, N, 2)."""
    rows, found = query.shape[:3], {}
    for name in row_fields(groups, layout):
        shape = (*rows, 2) if name == "centre" else rows
        dtype = torch.int64 if name == "argmaximum" else torch.float32
        found[name] = torch.empty(shape, dtype=dtype, device=query.device)
    return found


def read_rows(
    scores: torch.Tensor,
    prefix_scores: torch.Tensor,
    grid: Grid,
    tokens: slice,
    norms: torch.Tensor | None,
    results: dict[str, torch.Tensor],
    plane: int,
) -> tuple[Attention, torch.Tensor | None]:
    """Read the rows of some queries into `results`.

    Args:
        scores: (g, t, P), on the patches; becomes the softmax over them alone.
        prefix_scores: (g, t, X), on the tokens before them; becomes their weights in the whole row.
        tokens: Which tokens the queries are.
        norms: (g, N), of the projected values, or None.
        results: Room for the fields of rows, as `room_for_rows` gives it.
        plane: Which of the B H planes of a field the first of the g is.

    Returns:
        The attention, and with norms 1 / weighted_sum: (g, t).
    """
    kernels, layout = library(), grid.layout
    assert kernels is not None
    groups, queries, patches = scores.shape
    share, inverse_sum = scores.new_empty(2, groups, queries).unbind()
    prefix = prefix_scores.contiguous()
    tensors = {
        "scores": scores,
        "prefix_scores": prefix,
        "places": grid.lines_and_columns if "spread" in results else None,
        "distances": grid.distances(tokens) if "distance" in results else None,
        "norms": norms if norms is None else norms.contiguous(),
        "share": share,
        "inverse_sum": inverse_sum,
    }
    counts = {
        "groups": groups,
        "queries": queries,
        "patches": patches,
        "prefix": grid.prefix,
        "tokens": patches + grid.prefix,
        "columns": layout.grid[1],
        "first": tokens.start,
        "threads": torch.get_num_threads(),
        "class_token": -1 if layout.class_token is None else layout.class_token,
        "registers": layout.num_register_tokens,
    }
    fields = {name: results[name].flatten(0, 1)[plane].data_ptr() for name in results.keys() & set(_FIELDS)}
    pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    rows = _Rows(**counts, **pointers, **fields)
    kernels.read_rows(ctypes.byref(rows))
    return Attention(grid, tokens, scores, share, prefix), None if norms is None else inverse_sum


def norms_and_products(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the heads' parts (b, H, t) of (H, b, t, C), and their products with the sum of all: (b, H)."""
    kernels = library()
    assert kernels is not None
    heads, images, tokens, width = parts.shape
    norms, products = parts.new_empty(images, heads, tokens), parts.new_zeros(images, heads, dtype=torch.float64)
    for image in range(images):
        kernels.norms_and_products(
            parts[:, image].data_ptr(),
            heads,
            images * tokens * width,
            tokens,
            width,
            torch.get_num_threads(),
            norms[image].data_ptr(),
            products[image].data_ptr(),
        )
    return norms, products.to(parts.dtype)
