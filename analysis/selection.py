"""Some of the heads or tokens of a layer, as a caller names them."""

from typing import Any

import torch


class Selection:
    """Some of the entries of one dimension.

    Args:
        asked: None for all, an index, a slice, several indices, or a tensor of indices or booleans. Negative indices
            count from the end.
        name: What the caller calls it, for errors.

    Raises:
        ValueError: it is none of these, or empty.

    Example:

    ```python
    >>> Selection([0, -1], "heads").index(6)
    tensor([0, 5])
    >>> Selection(6, "heads").index(6)
    Traceback (most recent call last):
    ...
    ValueError: heads=6 is beyond the 6 that there are; pass indices from -6 to 5

    ```
    """

    def __init__(self, asked: Any, name: str) -> None:
        self.asked, self.name = asked, name
        self.indices: torch.Tensor | None = None
        if asked is None or isinstance(asked, slice):
            return
        try:
            indices = torch.as_tensor(asked).detach().cpu()
        except (TypeError, ValueError, RuntimeError):
            indices = torch.empty(0)
        if indices.dtype == torch.bool and indices.ndim == 1:
            self.indices = indices
        elif indices.ndim <= 1 and not indices.is_floating_point() and indices.dtype != torch.bool:
            self.indices = indices.reshape(-1).long()
        if self.indices is None or not len(self.indices) or (indices.dtype == torch.bool and not indices.any()):
            raise ValueError(
                f"{name}={asked!r} selects nothing; pass an index, a slice, several indices, or None for all"
            )
        if indices.dtype != torch.bool and len(self.indices.unique()) < len(self.indices):
            raise ValueError(f"{name}={asked!r} names an index twice; pass each once")

    def index(self, size: int) -> torch.Tensor | None:
        """The indices among `size`, or None for all of them.

        Raises:
            ValueError: an index is out of range, two are the same, or none is left.
        """
        if self.asked is None:
            return None
        if isinstance(self.asked, slice):
            found = torch.arange(size)[self.asked]
        elif self.indices is not None and self.indices.dtype == torch.bool:
            if len(self.indices) != size:
                raise ValueError(f"{self.name} has {len(self.indices)} booleans for {size}; pass one for each")
            found = self.indices.nonzero()[:, 0]
        else:
            assert self.indices is not None
            found = torch.where(self.indices < 0, self.indices + size, self.indices)
            if found.min() < 0 or found.max() >= size:
                raise ValueError(
                    f"{self.name}={self.asked!r} is beyond the {size} that there are; pass indices from {-size} to"
                    f" {size - 1}"
                )
        if len(found.unique()) < len(found):
            raise ValueError(f"{self.name}={self.asked!r} names an index twice; pass each once")
        if not len(found):
            raise ValueError(f"{self.name}={self.asked!r} selects none of {size}; pass indices from 0 to {size - 1}")
        return found
