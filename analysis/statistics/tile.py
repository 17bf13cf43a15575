"""Attention of a few queries of a few heads, and the statistics that can be read off it.

The patches and the tokens before them (class token, registers) are kept apart, each with a softmax of its own, and
joined by the share c that falls on the patches: p_ij = c_i w_ij for a patch j, where w_ij sums to 1 over the patches.
So what is relative to the patches (centre, spread, distance) stays exact where all but 1e-30 of a row is on the class
token, and no sum of the entropy takes a small number from a large one.

Shapes: g images times heads, t queries, P patches, X tokens before them, D width of a head.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import softplus

from .grid import Grid
from .reference import entropy_of


@dataclass
class Attention:
    """The attention of some queries.

    Args:
        tokens: Which tokens the queries are.
        weights: (g, t, P), softmax over the patches alone.
        on_patches: (g, t), the share c of the row on the patches.
        prefix: (g, t, X), the weights of the tokens before the patches in the whole row.
    """

    grid: Grid
    tokens: slice
    weights: torch.Tensor
    on_patches: torch.Tensor
    prefix: torch.Tensor


@dataclass
class Tile(Attention):
    """The attention of some queries, and what its rows are read by.

    Args:
        scores: (g, t, P), on the patches; the entropy uses them up, and then they are room for products.
        largest_score: (g, t), on the patches.
        best: (g, t, 1), index of the patch with the largest weight.
        best_weight: (g, t, 1), its weight among the patches.
        prefix_scores: (g, t, X), of the tokens before the patches.
        log_odds: (g, t), log of c / (1 - c).
        blind: (g, t), rows that may see no patch; None without a mask.
    """

    scores: torch.Tensor
    largest_score: torch.Tensor
    best: torch.Tensor
    best_weight: torch.Tensor
    prefix_scores: torch.Tensor
    log_odds: torch.Tensor
    blind: torch.Tensor | None

    @property
    def is_masked(self) -> bool:
        return self.blind is not None

    def as_grid(self, of_patches: torch.Tensor) -> torch.Tensor:
        """(g, t, P) -> (g, t, height, width)."""
        return of_patches.unflatten(-1, self.grid.layout.grid)

    def of_patches_alone(self, numbers: torch.Tensor) -> torch.Tensor:
        """NaN in the rows that see no patch: (g, t, ...)."""
        if self.blind is None:
            return numbers
        return numbers.masked_fill(self.blind.view(*self.blind.shape, *[1] * (numbers.ndim - 2)), torch.nan)


def attend(
    query: torch.Tensor,
    patch_keys: torch.Tensor,
    prefix_keys: torch.Tensor,
    mask: torch.Tensor | None,
    grid: Grid,
    tokens: slice,
    scaling: float,
    scores: torch.Tensor,
    weights: torch.Tensor,
) -> Tile:
    """The attention of some queries.

    Args:
        query: (g, t, D).
        patch_keys: (g, D, P).
        prefix_keys: (g, D, X).
        mask: (g, t, N), added to the scores.
        scores, weights: (g, t, P), room for the results.
    """
    prefix_scores = score(query, patch_keys, prefix_keys, mask, scaling, scores)
    largest, best = _largest(scores, grid.layout.grid)
    blind = None
    if mask is not None:
        blind = largest == -torch.inf
        scores.masked_fill_(blind[..., None], 0)
        largest = largest.masked_fill(blind, 0)
    torch.softmax(scores, dim=-1, out=weights)
    best_weight = weights.gather(-1, best)  # (g, t, 1)
    total = largest - best_weight[..., 0].log()  # (g, t), logsumexp over the patches
    if blind is not None:
        total = total.masked_fill(blind, -torch.inf)
    is_single = grid.prefix == 1  # a class token alone: no softmax among those before the patches
    log_odds = total - (prefix_scores[..., 0] if is_single else prefix_scores.logsumexp(dim=-1))
    prefix = torch.sigmoid(-log_odds)[..., None]
    if not is_single:
        prefix = prefix_scores.softmax(dim=-1) * prefix
    if mask is not None:
        prefix = prefix.masked_fill(log_odds[..., None] == torch.inf, 0)  # the tokens before the patches are all masked
    return Tile(
        grid=grid,
        tokens=tokens,
        scores=scores,
        weights=weights,
        largest_score=largest,
        best=best,
        best_weight=best_weight,
        on_patches=torch.sigmoid(log_odds),
        prefix_scores=prefix_scores,
        prefix=prefix,
        log_odds=log_odds,
        blind=blind,
    )


def score(
    query: torch.Tensor,
    patch_keys: torch.Tensor,
    prefix_keys: torch.Tensor,
    mask: torch.Tensor | None,
    scaling: float,
    scores: torch.Tensor,
) -> torch.Tensor:
    """Fill the scores (g, t, P) on the patches; returns those on the tokens before them: (g, t, X)."""
    torch.baddbmm(scores, query, patch_keys, beta=0, alpha=scaling, out=scores)
    prefix_scores = (query @ prefix_keys).mul_(scaling)
    if mask is not None:
        prefix = prefix_scores.shape[-1]
        scores += mask[..., prefix:]
        prefix_scores += mask[..., :prefix]
    return prefix_scores


def _largest(scores: torch.Tensor, grid: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest score of each row (g, t) and the patch that it belongs to (g, t, 1).

    First which line of the grid holds it: on a CPU a maximum with its index costs fifteen times one without.
    """
    width = grid[1]
    lines = scores.unflatten(-1, grid)  # (g, t, height, width)
    line = lines.amax(dim=-1).argmax(dim=-1, keepdim=True)  # (g, t, 1)
    first = line * width
    places = first + torch.arange(width, device=scores.device)  # (g, t, width)
    largest, column = scores.gather(-1, places).max(dim=-1, keepdim=True)
    return largest[..., 0], first + column


def entropy(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy of each row (g, t), and the sums over the lines of the grid (g, t, height). Uses up the scores.

    Among the patches, with u_j = exp(s_j - max s) and l = sum u: log l + sum_j u_j (max s - s_j) / l, where log l is
    log1p of the sum without the largest. Then the entropy of a mixture: H(c) + c H_patches + (1 - c) H_prefix. All
    terms are positive, so that a row with nearly all its weight on one token has an exact entropy too.
    """
    falls = tile.scores.sub_(tile.largest_score[..., None])  # s_j - max s
    if tile.is_masked:
        falls.clamp_(min=-1e4)  # weight 0 times infinity would be NaN
    mean_fall = -torch.mul(tile.weights, falls, out=falls).sum(dim=-1)
    tile.weights.scatter_(-1, tile.best, 0)
    lines = tile.as_grid(tile.weights).sum(dim=-1)  # (g, t, height), without the largest
    tile.weights.scatter_(-1, tile.best, tile.best_weight)
    others = lines.sum(dim=-1)
    lines.scatter_add_(-1, tile.best // tile.grid.columns.numel(), tile.best_weight)
    among_patches = torch.log1p(others / tile.best_weight[..., 0]) + mean_fall
    if not tile.grid.prefix:
        return among_patches, lines
    return _entropy_of_mixture(tile, among_patches), lines


def _entropy_of_mixture(tile: Tile, among_patches: torch.Tensor) -> torch.Tensor:
    off_patches = torch.sigmoid(-tile.log_odds)
    which = tile.on_patches * softplus(-tile.log_odds) + off_patches * softplus(tile.log_odds)
    if tile.is_masked:
        which = which.masked_fill(tile.log_odds.isinf(), 0)
    mixture = which + tile.on_patches * among_patches
    if tile.grid.prefix == 1:
        return mixture
    among_prefix = entropy_of(tile.prefix_scores.double().softmax(dim=-1)).to(which.dtype)
    if tile.is_masked:
        among_prefix = among_prefix.masked_fill(tile.log_odds == torch.inf, 0)
    return mixture + off_patches * among_prefix


def maximum(tile: Tile) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest weight of each row (g, t), and the token that has it."""
    of_patches = tile.on_patches * tile.best_weight[..., 0]
    patch = tile.best[..., 0] + tile.grid.prefix
    if not tile.grid.prefix:
        return of_patches, patch
    of_prefix, token = tile.prefix.max(dim=-1)
    return torch.maximum(of_patches, of_prefix), torch.where(of_patches >= of_prefix, patch, token)


def place(tile: Tile, lines: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre (g, t, 2) and spread (g, t) of the weight on the patches.

    Moments are taken about the patch with the largest weight, from the sums over lines and columns: about the corner of
    the grid, the variance of a narrow row would be the difference of two large numbers.
    """
    if lines is None:
        lines = tile.as_grid(tile.weights).sum(dim=-1)  # (g, t, height)
    columns = tile.as_grid(tile.weights).sum(dim=-2)  # (g, t, width)
    width = tile.grid.columns.numel()
    best_row, best_column = tile.best // width, tile.best % width
    down, down_squared = _moments(lines, tile.grid.rows - best_row)
    across, across_squared = _moments(columns, tile.grid.columns - best_column)
    centre = torch.stack([best_row[..., 0] + down, best_column[..., 0] + across], dim=-1)
    variance = down_squared - down.square() + across_squared - across.square()
    return tile.of_patches_alone(centre), tile.of_patches_alone(variance.clamp_(min=0).sqrt_())


def _moments(weights: torch.Tensor, steps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weighted = weights * steps
    return weighted.sum(dim=-1), (weighted * steps).sum(dim=-1)


def on_self(tile: Tile) -> torch.Tensor:
    """The weight of each query's own token: (g, t)."""
    prefix = tile.grid.prefix
    tokens = torch.arange(tile.tokens.start, tile.tokens.stop, device=tile.weights.device)
    patch = (tokens - prefix).clamp(min=0)[:, None].expand(len(tile.weights), -1, 1)
    own = tile.weights.gather(-1, patch)[..., 0] * tile.on_patches
    if tile.tokens.start < prefix:
        count = min(prefix, tile.tokens.stop) - tile.tokens.start
        own[:, :count] = tile.prefix[:, :count, tile.tokens.start :].diagonal(dim1=-2, dim2=-1)
    return own


def on_neighbours(tile: Tile) -> torch.Tensor:
    """The weight of the up to eight patches around each patch: (g, t); NaN for tokens before the patches."""
    which, exists = (table[tile.tokens] for table in tile.grid.neighbours)  # (t, 8)
    around = tile.weights.gather(-1, which.expand(len(tile.weights), -1, -1))  # (g, t, 8)
    return (around * exists).sum(dim=-1) * tile.on_patches


def distance(tile: Tile, distances: torch.Tensor) -> torch.Tensor:
    """Mean distance to the patches (g, t), from the distances (t, P)."""
    return tile.of_patches_alone(torch.mul(tile.weights, distances, out=tile.scores).sum(dim=-1))


def column_sums(attention: Attention, row_weights: torch.Tensor) -> torch.Tensor:
    """sum_i r_i p_ij for each of k vectors r: (g, k, t) -> (g, k, N)."""
    patches = (row_weights * attention.on_patches[:, None]) @ attention.weights  # (g, k, P)
    return torch.cat([row_weights @ attention.prefix, patches], dim=-1)


def outputs(attention: Attention, value: torch.Tensor) -> torch.Tensor:
    """sum_j p_ij v_j from the values (g, N, D): (g, t, D)."""
    first = attention.grid.prefix
    found = torch.bmm(attention.weights, value[:, first:]) * attention.on_patches[..., None]
    found += attention.prefix @ value[:, :first]
    return found


def mean_over_heads(attention: Attention, num_heads: int, of_heads: int) -> torch.Tensor:
    """sum_h p_ij / H for each image, over `num_heads` of its H = `of_heads` heads: (b, t, N). Uses up the weights."""
    patches = attention.weights.mul_(attention.on_patches[..., None]).unflatten(0, (-1, num_heads)).sum(dim=1)
    prefix = attention.prefix.unflatten(0, (-1, num_heads)).sum(dim=1)  # (b, t, X)
    return torch.cat([prefix, patches], dim=-1).div_(of_heads)


def products_of_heads(attention: Attention, num_heads: int) -> torch.Tensor:
    """sum_ij p_ij q_ij for every two heads p and q of an image: (g / H, H, H)."""
    products = []
    for image in range(len(attention.weights) // num_heads):
        heads = slice(image * num_heads, (image + 1) * num_heads)
        weights, share = attention.weights[heads].transpose(0, 1), attention.on_patches[heads].T  # (t, H, P), (t, H)
        prefix = attention.prefix[heads].flatten(1)  # (H, t * X)
        of_rows = torch.bmm(weights, weights.transpose(1, 2)) * (share[:, :, None] * share[:, None, :])  # (t, H, H)
        products.append(of_rows.sum(dim=0) + prefix @ prefix.T)
    return torch.stack(products)
