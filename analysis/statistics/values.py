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
    if projection is None:
        return torch.linalg.vector_norm(vectors, dim=-1)
    norms = torch.empty_like(vectors[..., 0])
    for image, tokens, parts in _parts(vectors, projection):
        norms[image, :, tokens] = torch.linalg.vector_norm(parts, dim=-1)
    return norms


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
    batch, heads, tokens, width = vectors.shape
    blocks = projection.to(vectors.dtype).unflatten(1, (heads, width)).permute(1, 2, 0)  # (H, D, C)
    step = max(1, PIECE // (heads * len(projection)))
    room = vectors.new_empty(heads * min(step, tokens) * len(projection))
    for image in range(batch):
        for start in range(0, tokens, step):
            piece = slice(start, min(start + step, tokens))
            parts = room[: heads * (piece.stop - start) * len(projection)].view(heads, -1, len(projection))
            yield image, piece, torch.bmm(vectors[image, :, piece], blocks, out=parts)
