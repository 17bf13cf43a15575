"""The definitions, written as plainly as they can be, in float64, with the attention maps in memory.

The fast paths are tested against this file; it is the one to read.

Shapes: B images, H heads, N tokens, P patches, D width of a head.
"""

from typing import Protocol

import torch

from ..token_layout import TokenLayout
from .inputs import AttentionInputs, added_mask

NEIGHBOUR_REACH = 2**0.5 + 0.1  # patches: the eight around one are at 1 and at the root of 2


def reference_statistics(inputs: AttentionInputs, groups: frozenset[str]) -> dict[str, torch.Tensor]:
    """The fields of `groups`, in float64."""
    weights = attention_weights(inputs)  # (B, H, N, N)
    layout = inputs.layout
    found: dict[str, torch.Tensor] = {}
    if "entropy" in groups:
        found["entropy"] = entropy_of(weights)
    if "maximum" in groups:
        found["maximum"], found["argmaximum"] = weights.max(dim=-1)
    if "received" in groups:
        found["received"] = weights.sum(dim=-2)
    if "masses" in groups:
        found |= masses("on", weights, layout)
        found["on_neighbours"] = on_neighbours(weights, layout)
    if "place" in groups:
        found["centre"], found["spread"] = centre_and_spread(weights, layout)
    if "distance" in groups:
        found["distance"] = mean_distance(weights, layout)
    if "similarity" in groups:
        flat = weights.flatten(2)  # (B, H, N * N)
        found["products"] = flat @ flat.transpose(1, 2)
    if "mean_map" in groups:
        found["mean_map"] = weights.mean(dim=1)
    if "values" in groups:
        found |= of_values(weights, inputs)
    return found


class QueriesAndKeys(Protocol):
    """What a map is made of."""

    @property
    def query(self) -> torch.Tensor: ...
    @property
    def key(self) -> torch.Tensor: ...
    @property
    def scaling(self) -> float: ...
    @property
    def mask(self) -> torch.Tensor | None: ...


def attention_weights(inputs: QueriesAndKeys) -> torch.Tensor:
    """softmax(scaling * Q K^T + mask): (B, H, N, N)."""
    scores = inputs.query.double() @ inputs.key.double().transpose(-1, -2) * inputs.scaling
    if inputs.mask is not None:
        scores = scores + added_mask(inputs.mask, torch.float64)
    return scores.softmax(dim=-1)


def entropy_of(weights: torch.Tensor) -> torch.Tensor:
    """-sum_j p_j log p_j of rows (..., n): -> (...).

    The largest weight is taken as 1 minus the others: near 1, its logarithm is lost in its rounding.
    """
    largest, best = weights.max(dim=-1, keepdim=True)
    others = weights.scatter(-1, best, 0)
    return torch.special.entr(others).sum(dim=-1) - (largest * torch.log1p(-others.sum(dim=-1, keepdim=True)))[..., 0]


def masses(stem: str, weights: torch.Tensor, layout: TokenLayout) -> dict[str, torch.Tensor]:
    """The weight on each kind of token: (B, H, N)."""
    found = {
        f"{stem}_prefix": weights[..., : layout.num_prefix].sum(dim=-1),
        f"{stem}_patches": weights[..., layout.patches].sum(dim=-1),
        f"{stem}_self": weights.diagonal(dim1=-2, dim2=-1),
    }
    if layout.class_token is not None:
        found[f"{stem}_class_token"] = weights[..., layout.class_token]
    if layout.registers is not None:
        found[f"{stem}_registers"] = weights[..., layout.registers].sum(dim=-1)
    return found


def on_neighbours(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """The weight on the up to eight patches around each patch: (B, H, N); NaN for tokens before the patches."""
    distances = layout.distances().to(weights.device)
    around = (distances > 0) & (distances < NEIGHBOUR_REACH)  # (P, P)
    return _of_patch_queries((weights[..., layout.patches, layout.patches] * around).sum(dim=-1), layout)


def mean_distance(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """sum_j p_ij d_ij / sum_j p_ij over the patches j: (B, H, N); NaN for tokens before the patches."""
    among_patches = _among_patches(weights, layout)[..., layout.num_prefix :, :]
    return _of_patch_queries((among_patches * layout.distances().to(weights.device)).sum(dim=-1), layout)


def centre_and_spread(weights: torch.Tensor, layout: TokenLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean place of the weight on patches (B, H, N, 2), and root mean square distance from it (B, H, N)."""
    among_patches = _among_patches(weights, layout)  # (B, H, N, P)
    rows, columns = (torch.arange(size, dtype=weights.dtype, device=weights.device) for size in layout.grid)
    places = torch.cartesian_prod(rows, columns)  # (P, 2)
    centre = among_patches @ places
    variance = torch.zeros_like(weights[..., 0])
    for axis in range(2):
        steps = places[:, axis] - centre[..., axis, None]  # (B, H, N, P)
        variance += (among_patches * steps.square()).sum(dim=-1)
    return centre, variance.sqrt()


def of_values(weights: torch.Tensor, inputs: AttentionInputs) -> dict[str, torch.Tensor]:
    """Norm-weighted attention and the heads' parts of the output; see `AttentionStatistics`."""
    assert inputs.value is not None
    value = inputs.value.double()
    parts = project(value, inputs.output_projection)  # (B, H, N, C)
    norms = parts.norm(dim=-1)  # (B, H, N)
    weighted = weights * norms[:, :, None]  # ||p_ij v_j W||
    total = weighted.sum(dim=-1)
    shares = weighted / total[..., None]
    outputs = project(weights @ value, inputs.output_projection)  # (B, H, N, C)
    if inputs.output_projection is None:
        along = outputs.square().sum(dim=(2, 3))
    else:
        along = (outputs * outputs.sum(dim=1, keepdim=True)).sum(dim=(2, 3))
    return {
        "value_norm": norms,
        "weighted_sum": total,
        "weighted_received": shares.sum(dim=-2),
        **masses("weighted_on", shares, inputs.layout),
        "output_norm": outputs.norm(dim=-1),
        "output_share": along / along.sum(dim=-1, keepdim=True),
    }


def project(vectors: torch.Tensor, projection: torch.Tensor | None) -> torch.Tensor:
    """Each head's vectors times its block of the output projection: (B, H, N, D) -> (B, H, N, C)."""
    if projection is None:
        return vectors
    blocks = projection.double().mT.unflatten(-2, (vectors.shape[1], vectors.shape[3]))  # (H, D, C)
    if projection.ndim == 3:  # of several layers, each for its own images
        blocks = blocks.repeat_interleave(len(vectors) // len(projection), dim=0)  # (B, H, D, C)
    return vectors @ blocks


def _among_patches(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """The weights on patches, normalised over them: (B, H, N, P); NaN where no patch has any."""
    of_patches = weights[..., layout.patches]
    return of_patches / of_patches.sum(dim=-1, keepdim=True)


def _of_patch_queries(numbers: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """(B, H, P) -> (B, H, N), NaN in front."""
    return torch.nn.functional.pad(numbers, (layout.num_prefix, 0), value=torch.nan)
