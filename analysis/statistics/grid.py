"""Where the tokens are: places, neighbours and distances on the grid of patches.

Shapes: N tokens, P patches, t tokens of a piece.
"""

from functools import cached_property, lru_cache

import torch

from ..token_layout import TokenLayout

# The steps to the eight patches around one.
STEPS = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
TOKENS_WITH_DISTANCES = 400  # up to so many, the distances of all are kept: 640 kB


class Grid:
    """Tables for a layout, on one device and in one data type. Tokens before the patches have no place: NaN."""

    def __init__(self, layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> None:
        self.layout = layout
        self.prefix = layout.num_prefix
        self.rows, self.columns = (torch.arange(size, device=device, dtype=dtype) for size in layout.grid)

    @cached_property
    def places(self) -> torch.Tensor:
        """(N, 2): row and column of each token."""
        patches = torch.cartesian_prod(self.rows, self.columns)  # (P, 2)
        return torch.cat([patches.new_full((self.prefix, 2), torch.nan), patches])

    @cached_property
    def lines_and_columns(self) -> torch.Tensor:
        """(2, P): row and column of each patch."""
        return self.places[self.prefix :].T.contiguous()

    @cached_property
    def neighbours(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 8): which patch each neighbour is; and 1 where there is one, 0 beyond the edge, NaN for tokens without
        a place."""
        height, width = self.layout.grid
        steps = torch.tensor(STEPS, device=self.rows.device)  # (8, 2)
        there = self.places.nan_to_num(0).long()[:, None] + steps  # (N, 8, 2)
        row, column = there.unbind(-1)
        inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
        exists = inside.to(self.rows.dtype)
        exists[: self.prefix] = torch.nan
        return torch.where(inside, row * width + column, 0), exists

    def distances(self, tokens: slice) -> torch.Tensor:
        """(t, P): Euclidean distance between the centres of some tokens and all patches, in patches; only to read."""
        if self.layout.num_tokens > TOKENS_WITH_DISTANCES:
            return self._distances(tokens)
        return self._all_distances[tokens]

    @cached_property
    def _all_distances(self) -> torch.Tensor:
        return self._distances(slice(None))

    def _distances(self, tokens: slice) -> torch.Tensor:
        row, column = self.places[tokens].unbind(-1)
        down = (row[:, None] - self.rows).square()  # (t, height)
        across = (column[:, None] - self.columns).square()  # (t, width)
        return (down[:, :, None] + across[:, None, :]).sqrt_().flatten(1)  # (t, P)


@lru_cache(maxsize=8)
def grid_of(layout: TokenLayout, device: torch.device, dtype: torch.dtype) -> Grid:
    """The tables, kept: the layers of a model share theirs."""
    return Grid(layout, device, dtype)
