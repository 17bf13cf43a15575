"""The fused CPU path: `cpu_kernels.c` reads a row of attention while it is in a core's cache.

Products of matrices stay torch's, but for those of the heads' parts of the output (`cpu_values.c`). What comes out is
what `tile.py` gives, in the same fields.

Shapes: B images, H heads, N tokens, P patches, X tokens before them, C width of the model; g images times heads and
t queries of a tile.
"""

import ctypes
import math
import operator

import torch

from ..token_layout import TokenLayout
from .cpu_library import library
from .grid import Grid
from .groups import row_fields
from .inputs import pieces
from .tile import Attention

MOST_HEADS = 256
TOKENS_AT_ONCE = 512  # whose vectors a core's cache holds while every two heads are multiplied

_COUNTS = (
    *("images", "heads", "queries", "patches", "prefix", "tokens", "padded", "columns", "first", "threads", "parts"),
    *("of_heads", "class_token", "registers", "keeps_weights"),
)
_TENSORS = ("scores", "prefix_scores", "places", "distances", "norms", "share", "room", "sums", "products_sums")
_OF_HEADS = (
    *("entropy", "maximum", "spread", "distance", "centre", "argmaximum", "on_prefix", "on_patches", "on_self"),
    *("on_class_token", "on_registers", "on_neighbours", "weighted_sum", "weighted_on_prefix", "weighted_on_patches"),
    *("weighted_on_self", "weighted_on_class_token", "weighted_on_registers", "received", "weighted_received"),
)
_OF_IMAGES = ("products", "mean_map")


class _Rows(ctypes.Structure):
    """`Rows` of cpu_kernels.c."""

    _fields_ = [(name, ctypes.c_int64) for name in _COUNTS] + [
        (name, ctypes.c_void_p) for name in (*_TENSORS, *_OF_HEADS, *_OF_IMAGES)
    ]


def suits(dtype: torch.dtype, device: torch.device, num_heads: int) -> bool:
    """Whether the kernels can take it: float32 on a CPU for which they could be compiled."""
    return dtype == torch.float32 and device.type == "cpu" and num_heads <= MOST_HEADS and library() is not None


def multiplies(width: int) -> bool:
    """Whether the kernels multiply heads of this width: with vectors so short that all processors have them, torch's
    products of all with all are as fast.
    """
    kernels = library()
    return kernels is not None and kernels.lanes() > 4 and width % kernels.lanes() == 0


def room_for(groups: frozenset[str], layout: TokenLayout, query: torch.Tensor) -> dict[str, torch.Tensor]:
    """Room for the fields: (B, H, N), the centre (B, H, N, 2), products of heads (B, H, H), the mean map (B, N, N)."""
    rows = query.shape[:3]
    names = row_fields(groups, layout)
    plain = [name for name in names if name not in ("centre", "argmaximum")]
    # One allocation and not fifteen: for small images they take as long as reading the rows.
    found = dict(zip(plain, torch.empty(len(plain), *rows, dtype=torch.float32).unbind(), strict=True))
    if "centre" in names:
        found["centre"] = torch.empty(*rows, 2, dtype=torch.float32)
    if "argmaximum" in names:
        found["argmaximum"] = torch.empty(rows, dtype=torch.int64)
    images, heads, tokens = rows
    sums = {
        "received": ("received", rows),
        "values": ("weighted_received", rows),
        "similarity": ("products", (images, heads, heads)),
        "mean_map": ("mean_map", (images, tokens, tokens)),
    }
    return found | {
        name: torch.zeros(shape, dtype=torch.float32) for group, (name, shape) in sums.items() if group in groups
    }


def read_rows(
    scores: torch.Tensor,
    prefix_scores: torch.Tensor,
    grid: Grid,
    images: slice,
    heads: slice,
    tokens: slice,
    of_heads: int,
    norms: torch.Tensor | None,
    results: dict[str, torch.Tensor],
    keeps_weights: bool,
) -> Attention:
    """Read the rows of some queries into `results`, and add to them what is summed over rows.

    Args:
        scores: (g, t, P), on the patches; with `keeps_weights` they become the softmax over them alone.
        prefix_scores: (g, t, X), on the tokens before them; becomes their weights in the whole row.
        images, heads, tokens: Which the queries are of; all heads, or one image.
        of_heads: How many heads there are.
        norms: (g, N), of the projected values, or None.
        results: Room for the fields, as `room_for` gives it.

    Returns:
        The attention; without `keeps_weights` its weights are the scores.
    """
    kernels, layout = library(), grid.layout
    assert kernels is not None
    groups, queries, patches = scores.shape
    count, threads = images.stop - images.start, torch.get_num_threads()
    some_heads, num_tokens = groups // count, patches + grid.prefix
    lanes = kernels.lanes()
    padded = -(-patches // lanes) * lanes
    parts = threads // math.gcd(count, threads)  # no thread has more to do than another
    share = scores.new_empty(groups, queries)
    prefix = prefix_scores.contiguous()
    has_columns, has_products = "received" in results or norms is not None, "products" in results
    tensors = {
        "scores": scores,
        "prefix_scores": prefix,
        "places": grid.lines_and_columns if "spread" in results else None,
        "distances": grid.distances(tokens) if "distance" in results else None,
        "norms": norms if norms is None else norms.contiguous(),
        "share": share,
        "room": scores.new_empty(threads, 2 * some_heads + 4, padded),
        "sums": scores.new_empty(count * parts, some_heads, 2, padded + grid.prefix) if has_columns else None,
        "products_sums": torch.empty(count * parts, some_heads, some_heads, dtype=torch.float64)
        if has_products
        else None,
    }
    counts = {
        "images": count,
        "heads": some_heads,
        "queries": queries,
        "patches": patches,
        "prefix": grid.prefix,
        "tokens": num_tokens,
        "padded": padded,
        "columns": layout.grid[1],
        "first": tokens.start,
        "threads": threads,
        "parts": parts,
        "of_heads": of_heads,
        "class_token": -1 if layout.class_token is None else layout.class_token,
        "registers": layout.num_register_tokens,
        "keeps_weights": keeps_weights,
    }
    pointers = {name: None if tensor is None else tensor.data_ptr() for name, tensor in tensors.items()}
    for name, field in results.items():
        if name in _OF_HEADS:
            pointers[name] = _address(field, images.start, heads.start)
        elif name in _OF_IMAGES:
            pointers[name] = _address(field, images.start)
    kernels.read_rows(ctypes.byref(_Rows(**counts, **pointers)))
    return Attention(grid, tokens, scores, share, prefix)


def _address(field: torch.Tensor, *place: int) -> int:
    """Where `field[place]` begins; a view of it takes ten times as long."""
    return field.data_ptr() + field.element_size() * sum(map(operator.mul, place, field.stride()))


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


def products_of_parts(outputs: torch.Tensor, products: torch.Tensor) -> torch.Tensor:
    """What each head's parts of an image have in common with the other heads' parts: (H), from (H, N, D).

    Args:
        products: (H * D, H * D), as `PreparedProjection` has them.
    """
    kernels = library()
    assert kernels is not None
    heads, num_tokens, width = outputs.shape
    room = outputs.new_empty(heads, heads, width // kernels.lanes(), dtype=torch.float64)
    totals = outputs.new_zeros(heads, dtype=torch.float64)
    factors = products.contiguous()
    for tokens in pieces(num_tokens, TOKENS_AT_ONCE):
        vectors = outputs[:, tokens].contiguous()
        kernels.products_of_parts(
            vectors.data_ptr(),
            heads,
            vectors.shape[1],
            width,
            factors.data_ptr(),
            torch.get_num_threads(),
            room.data_ptr(),
            totals.data_ptr(),
        )
    return totals.to(outputs.dtype)


def add_rows(scores: torch.Tensor, weights: torch.Tensor, found: torch.Tensor) -> None:
    """Add sum_hi r_i p_hij to `found` (N), from the scores (g, t, N) and the queries' weights r (t)."""
    kernels = library()
    assert kernels is not None
    assert scores.is_contiguous()
    assert found.is_contiguous()
    heads, queries, tokens = scores.shape
    lanes, threads = kernels.lanes(), torch.get_num_threads()
    padded = -(-tokens // lanes) * lanes
    weights, room = weights.contiguous(), scores.new_empty(threads, 2, padded)
    sizes = (heads, queries, tokens, padded)
    pointers = (weights.data_ptr(), threads, room.data_ptr(), found.data_ptr())
    kernels.add_rows(scores.data_ptr(), *sizes, *pointers)
