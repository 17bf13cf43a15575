"""The fused GPU path: `blockwise_statistics` by Triton kernels that keep every tile of scores on the chip.

Three kernels: rows are read in two passes over the keys; columns are summed over the queries; products of heads take a
third. What grows with N beside inputs and results are a few numbers for each row.

Shapes: B images, H heads, N tokens, X tokens before the patches, D width of a head, D_V of a value.
"""

import contextlib
import importlib.util
import math
import warnings
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from ...configuration.reasons import first_line
from ..token_layout import TokenLayout
from .groups import interpreted, row_fields
from .inputs import AttentionInputs, hidden_from
from .precision import full_precision
from .values import norms_and_shares, projected_norms

TYPES = (torch.float32, torch.bfloat16, torch.float16)
WIDEST_HEAD, MOST_PREFIX_TOKENS = 128, 32  # beyond, a program's registers would not do


def suits(
    query: torch.Tensor, value: torch.Tensor | None = None, mask: torch.Tensor | None = None, prefix: int = 0
) -> bool:
    """Whether the kernels can take it: an NVIDIA GPU from compute capability 8.0 on, Triton at hand, not float64."""
    return (
        query.dtype in TYPES
        and (value is None or value.dtype in TYPES)
        and all(it is None or it.device == query.device for it in (value, mask))
        and all(it is None or it.shape[-1] <= WIDEST_HEAD for it in (query, value))
        and prefix <= MOST_PREFIX_TOKENS
        and _is_capable(query.device)
        and _has_triton()
    )


@lru_cache
def _has_triton() -> bool:
    """Whether Triton is there and works: on a GPU it needs a C compiler too, which not every container has."""
    if importlib.util.find_spec("triton") is None:
        return False
    if interpreted():
        return True
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception as error:
        reason = first_line(error)
        warnings.warn(f"Triton does not work here ({reason}): statistics go over blocks instead, slower", stacklevel=2)
        return False
    return True


def _is_capable(device: torch.device) -> bool:
    if device.type == "cpu":
        return interpreted()
    is_nvidia = device.type == "cuda" and torch.version.hip is None
    return is_nvidia and torch.cuda.get_device_capability(device) >= (8, 0)


class Launch(NamedTuple):
    """A kernel with all that it is given."""

    kernel: str
    programs: int
    arguments: dict[str, Any]
    num_warps: int

    def function(self) -> Any:
        """The kernel itself. Imports Triton."""
        from . import triton_columns, triton_rows

        return getattr(triton_rows if self.kernel == "row_kernel" else triton_columns, self.kernel)

    def run(self) -> None:
        device = self.arguments["query"].device
        with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
            self.function()[(self.programs,)](**self.arguments, num_warps=self.num_warps, num_stages=NUM_STAGES)


class Tile(NamedTuple):
    """How many queries and keys a program takes at once, and its threads, 32 in a warp."""

    queries: int
    keys: int
    num_warps: int


def tile_for(kernel: str, query: torch.Tensor, width: int, *, with_output: bool = False) -> Tile:
    """The tile with the fewest instructions for a score whose sums fit into registers, as compiled for Hopper.

    `benchmarks/compile_kernels.py` shows what each kernel takes: none puts registers aside, without a mask and with few
    tokens before the patches, and all have room in the shared memory of the smallest devices.
    """
    if query.device.type == "cpu":
        return Tile(16, 16, 4)  # interpreted: small, so that tests see several
    is_wide = width > 64
    if query.dtype == torch.float32:  # products by single numbers, not by tensor cores, hold their factors in registers
        if kernel == "row_kernel":
            return Tile(32 if is_wide else 64, 32, 8)
        if kernel == "product_kernel":
            return Tile(16 if is_wide else 32, 16, 4)
        return Tile(32, 32, 8 if is_wide else 4)
    if kernel == "row_kernel":
        return Tile(64, 32, 4) if not with_output else Tile(32, 32, 4) if is_wide else Tile(64, 16, 4)
    if kernel == "product_kernel":
        return Tile(32 if is_wide else 64, 16, 4)
    return Tile(64, 64, 4)


NUM_STAGES = 2
CHUNK = 16  # numbers of a vector that a product of float32 takes at a time


class Attention(NamedTuple):
    """What all kernels are given."""

    query: torch.Tensor
    key: torch.Tensor
    mask: torch.Tensor | None
    scaling: float

    @property
    def rows(self) -> torch.Size:
        """(B, H, N)."""
        return self.query.shape[:3]

    def arguments(self, tile: Tile) -> dict[str, Any]:
        query, key = _readable(self.query), _readable(self.key)
        mask = query if self.mask is None else self.mask
        of_mask = [0] * 4 if self.mask is None else [mask.stride(d) if mask.shape[d] > 1 else 0 for d in range(4)]
        is_bool = mask.dtype == torch.bool
        width = _padded(query.shape[3])
        return {
            "query": query,
            "key": key,
            "mask": mask.view(torch.uint8) if is_bool else mask,
            "base": float(self.scaling) * math.log2(math.e),
            "hidden": 0.0 if self.mask is None or is_bool else _in_32_bits(hidden_from(mask)),
            "heads": query.shape[1],
            "tokens": query.shape[2],
            **_strides("q", query.stride()[:3]),
            **_strides("k", key.stride()[:3]),
            **dict(zip(("m_image", "m_head", "m_query", "m_key"), of_mask, strict=True)),
            "MASK": 0 if self.mask is None else 1 if is_bool else 2,
            "D": query.shape[3],
            "WIDEN": query.device.type == "cpu",  # the interpreter has no products of bfloat16
            "BLOCK_M": tile.queries,
            "BLOCK_N": tile.keys,
            "BLOCK_D": width,
            "CHUNK": CHUNK if query.dtype == torch.float32 else width,
        }


def _strides(name: str, strides: tuple[int, ...]) -> dict[str, int]:
    return dict(zip((f"{name}_image", f"{name}_head", f"{name}_token"), strides, strict=True))


def _readable(tensor: torch.Tensor) -> torch.Tensor:
    """Vectors without gaps, and offsets within an image and head that 32 bits hold."""
    is_dense = tensor.stride(-1) == 1 and tensor.shape[2] * tensor.stride(2) < 2**31
    return tensor if is_dense else tensor.contiguous()


def _padded(size: int) -> int:
    """A power of two, as large as the products' least."""
    return max(16, 1 << (size - 1).bit_length())


def _in_32_bits(number: float) -> float:
    return number if number >= torch.finfo(torch.float32).min else -torch.inf


def planes(groups: frozenset[str], layout: TokenLayout) -> list[str]:
    """The fields of rows that are one float32 each, in the order in which `row_kernel` writes them."""
    return [name for name in row_fields(groups, layout) if name not in ("argmaximum", "centre")]


def fused_statistics(inputs: AttentionInputs, groups: frozenset[str]) -> dict[str, torch.Tensor]:
    """The fields of `groups`, as `blockwise_statistics` gives them. `suits` must hold."""
    attention = Attention(inputs.query, inputs.key, inputs.mask, inputs.scaling)
    with full_precision(inputs.query.device):
        norms = None
        if "values" in groups:
            assert inputs.value is not None
            norms = projected_norms(inputs.value.to(torch.float32), inputs.output_projection, inputs.prepared)
        launch, results = row_launch(attention, groups, inputs, norms)
        launch.run()
        # Memory of its own for each field: one that is kept or saved does not take the others along.
        results = {name: field.clone() for name, field in results.items()}
        launch.arguments.pop("rows")
        log_sums, *row_weights = launch.arguments["state"]
        if norms is not None:
            results["value_norm"] = norms
            outputs = launch.arguments["output"] if launch.arguments["OUTPUT"] else inputs.output
            assert outputs is not None
            norms_of_heads, shares = norms_and_shares(outputs, inputs.output_projection, inputs.prepared)
            results |= {"output_norm": norms_of_heads, "output_share": shares}
        if groups & {"received", "values"}:
            sums = column_sums(attention, log_sums, *row_weights, plain="received" in groups)
            if "received" in groups:
                results["received"] = sums[0].clone()
            if norms is not None:
                results["weighted_received"] = sums[-1] * norms
        if "similarity" in groups:
            results["products"] = products_of_heads(attention, log_sums)
    return results


def row_launch(
    attention: Attention, groups: frozenset[str], inputs: AttentionInputs, norms: torch.Tensor | None = None
) -> tuple[Launch, dict[str, torch.Tensor]]:
    """`row_kernel` and the results that it fills.

    The state is (1 or 2, B, H, N): L_i, with which p_ij = 2^(s_ij - L_i), and what weights of values are divided by.
    """
    value = inputs.value
    width = 1 if value is None else value.shape[3]
    query, rows = attention.query, attention.rows
    names = planes(groups, inputs.layout)
    has_output = inputs.output is not None and inputs.output.dtype == torch.float32
    needs_output = norms is not None and not has_output
    states = 2 if norms is not None else 1 if groups & {"received", "similarity"} else 0
    tile = tile_for("row_kernel", query, max(query.shape[3], width), with_output=needs_output)
    given = attention.arguments(tile)
    query = given["query"]
    value = query if value is None else _readable(value)

    def room(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device=query.device)

    buffers = {
        "rows": room(max(1, len(names)), *rows),
        "centres": room(*rows, 2) if "place" in groups else query,
        "tokens_of_largest": room(*rows, dtype=torch.int64) if "maximum" in groups else query,
        "state": room(max(1, states), *rows),
        "output": room(*rows, width) if needs_output else query,
    }
    arguments = given | {
        **buffers,
        "value": value,
        "norms": query if norms is None else norms.contiguous(),
        **_strides("v", value.stride()[:3]),
        "columns": inputs.layout.grid[1],
        "CLASS": int(inputs.layout.class_token is not None),
        "REGISTERS": inputs.layout.num_register_tokens,
        **{name.upper(): int(name in groups) for name in ("entropy", "maximum", "place", "masses", "distance")},
        "VALUES": int(norms is not None),
        "OUTPUT": int(needs_output),
        "STATE": states,
        "PREFIX": inputs.layout.num_prefix,
        "plane": rows.numel(),
        "D_V": width,
        "BLOCK_X": _padded(inputs.layout.num_prefix),
        "BLOCK_V": _padded(width),
    }
    results = dict(zip(names, buffers["rows"], strict=False))  # for no name, one plane stays empty
    if "place" in groups:
        results["centre"] = buffers["centres"]
    if "maximum" in groups:
        results["argmaximum"] = buffers["tokens_of_largest"]
    programs = rows[0] * rows[1] * -(-rows[2] // tile.queries)
    return Launch("row_kernel", programs, arguments, tile.num_warps), results


def log_sum_launch(attention: Attention) -> Launch:
    """`log_sum_kernel`; its "log_sums" are (B, H, N)."""
    tile = tile_for("log_sum_kernel", attention.query, attention.query.shape[3])
    found = attention.query.new_empty(attention.rows, dtype=torch.float32)
    programs = attention.rows[0] * attention.rows[1] * -(-attention.rows[2] // tile.queries)
    return Launch("log_sum_kernel", programs, attention.arguments(tile) | {"log_sums": found}, tile.num_warps)


def column_launch(
    attention: Attention, log_sums: torch.Tensor, row_weights: torch.Tensor | None = None, *, plain: bool = True
) -> Launch:
    """`column_kernel`; its "sums" are (1 or 2, B, H, N). Weights of rows may be the same for all heads, (B, 1, N)."""
    tile = tile_for("column_kernel", attention.query, attention.query.shape[3])
    given = attention.arguments(tile)
    planes = int(plain) + int(row_weights is not None)
    arguments = given | {
        "log_sums": log_sums,
        "row_weights": log_sums if row_weights is None else row_weights,
        "r_image": 0 if row_weights is None else row_weights.stride(0),
        "r_head": 0 if row_weights is None or row_weights.shape[1] == 1 else row_weights.stride(1),
        "sums": log_sums.new_empty(planes, *attention.rows),
        "plane": attention.rows.numel(),
        "PLAIN": int(plain),
        "WEIGHTED": int(row_weights is not None),
    }
    programs = attention.rows[0] * attention.rows[1] * -(-attention.rows[2] // tile.keys)
    return Launch("column_kernel", programs, arguments, tile.num_warps)


def column_sums(
    attention: Attention, log_sums: torch.Tensor, row_weights: torch.Tensor | None = None, *, plain: bool = True
) -> torch.Tensor:
    """sum_i p_ij, if it is to be `plain`, and with weights r of rows sum_i r_i p_ij: (1 or 2, B, H, N)."""
    launch = column_launch(attention, log_sums, row_weights, plain=plain)
    launch.run()
    return launch.arguments["sums"]


def product_launch(attention: Attention, log_sums: torch.Tensor) -> Launch:
    """`product_kernel`; its "products" are (B, blocks of queries, H, H)."""
    tile = tile_for("product_kernel", attention.query, attention.query.shape[3])
    images, heads, tokens = attention.rows
    blocks, groups = -(-tokens // tile.queries), -(-heads // 3)
    found = log_sums.new_empty(images, blocks, heads, heads)
    arguments = attention.arguments(tile) | {"log_sums": log_sums, "found_products": found}
    return Launch("product_kernel", images * blocks * (groups * (groups + 1) // 2), arguments, tile.num_warps)


def products_of_heads(attention: Attention, log_sums: torch.Tensor) -> torch.Tensor:
    """sum_ij p_ij q_ij for every two heads p and q of an image: (B, H, H)."""
    launch = product_launch(attention, log_sums)
    launch.run()
    return launch.arguments["found_products"].sum(dim=1)


def row_sums(query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, scaling: float) -> torch.Tensor:
    """L_i for `fused_row_product`, with which p_ij = 2^(s_ij - L_i): (B, H, N)."""
    launch = log_sum_launch(Attention(query, key, mask, scaling))
    launch.run()
    return launch.arguments["log_sums"]


def fused_row_product(
    query: torch.Tensor,
    key: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    row: torch.Tensor,
    log_sums: torch.Tensor,
) -> torch.Tensor:
    """r A, with A the mean over heads of the attention maps: (B, N) -> (B, N). A step of rollout.

    Args:
        log_sums: Those of these images from `row_sums`.
    """
    weights = row[:, None].to(torch.float32).contiguous()
    return column_sums(Attention(query, key, mask, scaling), log_sums, weights, plain=False)[0].mean(dim=1)
