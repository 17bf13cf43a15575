"""What the values do to attention: their norms after the output projection, and each head's share of the output.

A head's part of the layer's output for query i is sum_j p_ij v_j W, where W (D x C) is the head's block of the output
projection; ||p_ij v_j W|| = p_ij ||v_j W|| says how much of token j arrives (Kobayashi et al. 2020, arXiv 2004.10102).

Shapes: B images, H heads, N tokens, D width of a head, C width of the model, t tokens of a piece.
"""

from collections.abc import Iterator

import torch

PIECE = 2**21  # numbers: all heads' parts of a few tokens, H times as large as the layer's output for them


def projected_norms(vectors: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """||v W|| of each vector with its head's block W of the projection: (B, H, N, D) -> (B, H, N)."""
    if projection is not None:
        vectors = vectors @ head_factors(projection, vectors.shape[1]).to(vectors.dtype)
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
        for image, tokens, parts in _parts(outputs, projection):
            norms[image, :, tokens] = torch.linalg.vector_norm(parts, dim=-1)
            along[image] += parts.flatten(1) @ parts.sum(dim=0).flatten()
    return norms, along / along.sum(dim=-1, keepdim=True)


def _parts(vectors: torch.Tensor, projection: torch.Tensor) -> Iterator[tuple[int, slice, torch.Tensor]]:
    """Every head's vectors times its block of the projection, some tokens at a time: (H, t, C)."""
    batch, heads, tokens, _ = vectors.shape
    blocks = _blocks(projection.to(vectors.dtype), heads)
    step = max(1, PIECE // (heads * len(projection)))
    room = vectors.new_empty(heads * min(step, tokens) * len(projection))
    for image in range(batch):
        for start in range(0, tokens, step):
            piece = slice(start, min(start + step, tokens))
            parts = room[: heads * (piece.stop - start) * len(projection)].view(heads, -1, len(projection))
            yield image, piece, torch.bmm(vectors[image, :, piece], blocks, out=parts)


def _blocks(projection: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Each head's block W of the projection: (C, H D) -> (H, D, C)."""
    return projection.unflatten(1, (num_heads, -1)).permute(1, 2, 0)
