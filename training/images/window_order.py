"""An epoch's order for files that are read a group of rows at a time: random, and yet within few groups at a time."""

import numpy as np
import torch


class WindowOrder:
    """Groups in random order, cut into windows of at least so many images, and the images of each window shuffled.

    The order follows from the generator alone. So going on after a stop needs no more than the position, and neither
    processes nor workers change it; each of them reads every group once an epoch.

    Args:
        groups: (images,) the group that each image lies in, ascending.
        window: How many images the groups of a window hold at least, those that are not trained on included.
        sizes: How many images each group holds. `None`: those that are trained on.

    Attributes:
        most_groups: No window has more groups.

    Example:

    ```python
    >>> order = WindowOrder(np.array([0, 0, 0, 1, 1, 1, 2, 2, 2]), window=4)
    >>> order(torch.Generator().manual_seed(0))
    [2, 7, 6, 0, 8, 1, 4, 5, 3]

    ```
    """

    def __init__(self, groups: np.ndarray, window: int, sizes: np.ndarray | None = None) -> None:
        names, self.starts, self.counts = np.unique(groups, return_index=True, return_counts=True)
        self.window = window
        self.sizes = self.counts if sizes is None else sizes[names]
        smallest_first = np.cumsum(np.sort(self.sizes))
        self.most_groups = min(int(np.searchsorted(smallest_first, window)) + 1, len(self.counts))

    def __call__(self, generator: torch.Generator) -> list[int]:
        """The images of an epoch."""
        order: list[int] = []
        pending: list[np.ndarray] = []
        held = 0
        for group in torch.randperm(len(self.counts), generator=generator).tolist():
            pending.append(np.arange(self.starts[group], self.starts[group] + self.counts[group]))
            held += int(self.sizes[group])
            if held >= self.window:
                order += _shuffled(pending, generator)
                pending, held = [], 0
        return order + (_shuffled(pending, generator) if pending else [])


def _shuffled(parts: list[np.ndarray], generator: torch.Generator) -> list[int]:
    places = np.concatenate(parts)
    return places[torch.randperm(len(places), generator=generator).numpy()].tolist()
