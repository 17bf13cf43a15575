"""What the values do to attention: their norms after the output projection, and each head's share of the output.

A head's part of the layer's output for query i is sum_j p_ij v_j W, where W (D x C) is the head's block of the output
projection; ||p_ij v_j W|| = p_ij ||v_j W|| says how much of token j arrives (Kobayashi et al. 2020, arXiv 2004.10102).

Shapes: B images, H heads, N tokens, D width of a head, C width of the model; b images and t tokens of a piece.
"""

import math
from collections.abc import Iterator

import torch

from . import fused_cpu
from .inputs import pieces
from .projection import PreparedProjection, blocks_of_heads, head_factors

# Numbers of a piece, all heads' parts of a few tokens: they are H times as many as the layer's output for them.
CPU_PIECE, GPU_PIECE = 2**20, 2**25


def projected_norms(
    vectors: torch.Tensor, projection: torch.Tensor | None, prepared: PreparedProjection | None = None
) -> torch.Tensor:
    """||v W|| of each vector with its head's block W of the projection: (B, H, N, D) -> (B, H, N)."""
    if prepared is not None:
        vectors = vectors @ prepared.of_images("factors", len(vectors)).to(vectors.dtype)
    elif projection is not None:
        # Of a few vectors the product itself takes less time than the factors.
        if vectors.shape[0] * vectors.shape[2] <= len(projection):
            return norms_and_shares(vectors, projection)[0]
        vectors = vectors @ head_factors(projection, vectors.shape[1]).to(vectors.dtype)
    return torch.linalg.vector_norm(vectors, dim=-1)


def norms_and_shares(
    outputs: torch.Tensor, projection: torch.Tensor | None, prepared: PreparedProjection | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of each head's part of the output (B, H, N), and its share of the layer's output (B, H).

    The share is sum_i <o_hi, o_i> / sum_i ||o_i||^2, where o_hi is the head's part and o_i = sum_h o_hi the output,
    without the projection's bias. Shares sum to 1; a head that works against the others has a negative one.

    Args:
        outputs: (B, H, N, D), what attention gives before the projection.
    """
    if prepared is not None:
        norms = projected_norms(outputs, projection, prepared)
        along = _products_with_output(outputs, norms, prepared)
    elif projection is None:
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


def _products_with_output(outputs: torch.Tensor, norms: torch.Tensor, prepared: PreparedProjection) -> torch.Tensor:
    """sum_i <o_hi, o_i> from sum_i v_hi v_gi^T of every two heads h and g: (B, H), with (B, H, N, D) as they are.

    No part of a head is made. Where the kernel suits (`fused_cpu.multiplies`), every two heads are multiplied once;
    torch multiplies all with all. What a head has with itself comes from the norms, which do not lose digits where its
    block of the projection all but cancels v.
    """
    batch, heads, _, width = outputs.shape
    squares = norms.square().sum(dim=-1)  # (B, H)
    products = prepared.products.to(outputs.dtype)  # (H D, H D), or for each layer
    if products.ndim == 3:
        layers = torch.arange(len(products), device=outputs.device).repeat_interleave(batch // len(products))
    if fused_cpu.suits(outputs.dtype, outputs.device, heads) and fused_cpu.multiplies(width) and batch:
        of_images = [products] * batch if products.ndim == 2 else [products[layer] for layer in layers.tolist()]
        return squares + torch.stack(list(map(fused_cpu.products_of_parts, outputs, of_images)))
    at_once = 1 if outputs.device.type == "cpu" else max(1, GPU_PIECE // (heads * width) ** 2)
    along = torch.empty_like(squares)
    for images in pieces(batch, at_once):
        side_by_side = outputs[images].transpose(1, 2).flatten(2)  # (b, N, H D)
        with_others = side_by_side.mT @ side_by_side
        with_others *= products if products.ndim == 2 else products[layers[images]]
        along[images] = squares[images] + with_others.sum(dim=2).unflatten(1, (heads, width)).sum(dim=2)
    return along


def _norms_and_products(parts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Norms of the heads' parts (b, H, t) of (H, b, t, C), and their products with the sum of all: (b, H)."""
    of_images, output = parts.flatten(2).transpose(0, 1), parts.sum(dim=0).flatten(1)  # (b, H, t C), (b, t C)
    products = torch.bmm(of_images, output[..., None])[..., 0]
    return torch.linalg.vector_norm(parts, dim=-1).transpose(0, 1), products


def _parts(vectors: torch.Tensor, projection: torch.Tensor) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Every head's vectors times its block of the projection, some images and tokens at a time: (H, b, t, C)."""
    batch, heads, tokens, _ = vectors.shape
    blocks = blocks_of_heads(projection.to(vectors.dtype), heads)
    rows = max(1, (CPU_PIECE if vectors.device.type == "cpu" else GPU_PIECE) // (heads * len(projection)))
    at_once = max(1, min(batch, rows // tokens))
    room = vectors.new_empty(heads * min(rows, at_once * tokens) * len(projection))
    for images in pieces(batch, at_once):
        for some in pieces(tokens, rows):
            part = vectors[images, :, some].transpose(0, 1)  # (H, b, t, D)
            shape = (*part.shape[:3], len(projection))
            parts = room[: math.prod(shape)].view(heads, -1, len(projection))
            yield images, some, torch.bmm(part.flatten(1, 2), blocks, out=parts).view(shape)
