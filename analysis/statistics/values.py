"""What the values do to attention: their norms after the output projection, and each head's share of the output.

A head's part of the layer's output for query i is sum_j p_ij v_j W, where W (D x C) is the head's block of the output
projection; ||p_ij v_j W|| = p_ij ||v_j W|| says how much of token j arrives (Kobayashi et al. 2020, arXiv 2004.10102).

Shapes: B images, H heads, N tokens, D width of a head, C width of the model; b images and t tokens of a piece.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from . import fused_cpu
from .inputs import pieces

# Numbers of a piece, all heads' parts of a few tokens: they are H times as many as the layer's output for them.
CPU_PIECE, GPU_PIECE = 2**20, 2**25


@dataclass(frozen=True)
class PreparedProjection:
    """An output projection with what is computed from it alone, for who asks about many images.

    It is that of the weights as they were when it was made.

    Args:
        weight: (C, H * D).
        factors: (H, D, D), as `head_factors` gives them.

    Example:

    ```python
    >>> prepared = PreparedProjection.of(torch.nn.Linear(12, 6), num_heads=3)
    >>> prepared.weight.shape, prepared.factors.shape
    (torch.Size([6, 12]), torch.Size([3, 4, 4]))

    ```
    """

    weight: torch.Tensor
    factors: torch.Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, projection: torch.nn.Linear, num_heads: int) -> "PreparedProjection":
        """From the linear layer after attention; its weight is not copied."""
        factors = head_factors(projection.weight, num_heads)
        return cls(projection.weight, factors.to(torch.promote_types(projection.weight.dtype, torch.float32)))


def projected_norms(
    vectors: torch.Tensor, projection: torch.Tensor | None, factors: torch.Tensor | None = None
) -> torch.Tensor:
    """||v W|| of each vector with its head's block W of the projection: (B, H, N, D) -> (B, H, N)."""
    if projection is not None:
        if factors is None:
            # Of a few vectors the product itself takes less time than the factors.
            if vectors.shape[0] * vectors.shape[2] <= len(projection):
                return norms_and_shares(vectors, projection)[0]
            factors = head_factors(projection, vectors.shape[1])
        vectors = vectors @ factors.to(vectors.dtype)
    return torch.linalg.vector_norm(vectors, dim=-1)


def head_factors(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    """L of each head with L L^T = W W^T, so that ||v L|| = ||v W||, with D columns in the place of C: (H, D, D).

    Cholesky's factor in float64, whose rounding the square of W's condition number leaves small. The 1e-14 is for a W
    without full rank: it changes a norm by less than 1e-7 of ||v|| ||W||.
    """
    blocks = _blocks(projection.double(), num_heads)
    squares = blocks @ blocks.transpose(1, 2)  # (H, D, D)
    diagonal = squares.diagonal(dim1=1, dim2=2)
    diagonal += (1e-14 * diagonal.sum(dim=1, keepdim=True)).clamp_min(1e-300)
    return torch.linalg.cholesky_ex(squares).L


def norms_and_shares(outputs: torch.Tensor, projection: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of each head's part of the output (B, H, N), and its share of the layer's output (B, H).

    The share is sum_i <o_hi, o_i> / sum_i ||o_i||^2, where o_hi is the head's part and o_i = sum_h o_hi the output,
    without the projection's bias. Shares sum to 1; a head that works against the others has a negative one.

    Args:
        outputs: (B, H, N, D), what attention gives before the projection.
    """
    if projection is None:
        norms = torch.linalg.vector_norm(outputs, dim=-1)
        along = norms.square().sum(dim=-1)  # the heads' parts stand beside each other
    else:
        norms = torch.empty_like(outputs[..., 0])
        along = norms.new_zeros(norms.shape[:2])
        norms_and_products = (
            fused_cpu.norms_and_products
            if fused_cpu.suits(outputs.dtype, outputs.device, outputs.shape[1])
            else _norms_and_products
        )
        for images, tokens, parts in _parts(outputs, projection):
            norms[images, :, tokens], products = norms_and_products(parts)
            along[images] += products
    return norms, along / along.sum(dim=-1, keepdim=True)


def _norms_and_products(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the heads' parts (b, H, t) of (H, b, t, C), and their products with the sum of all: (b, H)."""
    of_images, output = parts.flatten(2).transpose(0, 1), parts.sum(dim=0).flatten(1)  # (b, H, t C), (b, t C)
    products = torch.bmm(of_images, output[..., None])[..., 0]
    return torch.linalg.vector_norm(parts, dim=-1).transpose(0, 1), products


def _parts(vectors: torch.Tensor, projection: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Every head's vectors times its block of the projection, some images and tokens at a time: (H, b, t, C)."""
    batch, heads, tokens, _ = vectors.shape
    blocks = _blocks(projection.to(vectors.dtype), heads)
    rows = max(1, (CPU_PIECE if vectors.device.type == "cpu" else GPU_PIECE) // (heads * len(projection)))
    at_once = max(1, min(batch, rows // tokens))
    room = vectors.new_empty(heads * min(rows, at_once * tokens) * len(projection))
    for images in pieces(batch, at_once):
        for some in pieces(tokens, rows):
            part = vectors[images, :, some].transpose(0, 1)  # (H, b, t, D)
            shape = (*part.shape[:3], len(projection))
            parts = room[: math.prod(shape)].view(heads, -1, len(projection))
            yield images, some, torch.bmm(part.flatten(1, 2), blocks, out=parts).view(shape)


def _blocks(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Each head's block W of the projection: (C, H D) -> (H, D, C)."""
    return projection.unflatten(1, (num_heads, -1)).permute(1, 2, 0)
