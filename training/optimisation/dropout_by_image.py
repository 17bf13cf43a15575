"""Dropout, stochastic depth and patch dropout drawn by image: the same for any number of processes."""

from typing import Any

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..augmentation.counter_random import Purpose, uniform
from ..errors import TrainingRefusedError


class DropoutByImage(TorchFunctionMode):
    """Inside, `dropout`, `bernoulli_` and `rand` of a batch take their numbers from (seed, key of the image, place).

    The place is which of these calls it is in the pass, so a pass must make them in one order: no recomputation
    (activation checkpointing) and no compiled graph. Dropout inside a fused attention kernel is out of reach. Where a
    tensor has several rows of each image, such as Swin's windows, those of an image come one after the other.

    Args:
        seed: Of the run.
        keys: (B, 3), see `uniform`.

    Example:

    ```python
    >>> keys, ones = torch.tensor([[0, 4, 0], [0, 9, 0]]), torch.ones(2, 5)
    >>> with DropoutByImage(0, keys):
    ...     both = F.dropout(ones, 0.5, True)
    >>> with DropoutByImage(0, keys[1:]):
    ...     one = F.dropout(ones[1:], 0.5, True)
    >>> both[1:].equal(one)
    True

    ```
    """

    def __init__(self, seed: int, keys: torch.Tensor) -> None:
        super().__init__()
        self.seed = seed
        self.keys = keys
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.dropout:
            return self._dropout(*args, **kwargs)
        if func is torch.Tensor.bernoulli_ and len(args[0]) == len(self.keys):
            tensor, probability = args[0], args[1] if len(args) > 1 else kwargs.get("p", 0.5)
            return tensor.copy_((self._numbers(tensor) < probability).to(tensor.dtype))
        if func is torch.rand:
            shape = args[0] if args and isinstance(args[0], (tuple, list)) else args or kwargs.get("size", ())
            if shape and shape[0] == len(self.keys):
                return self._numbers(torch.empty(*args, **kwargs))
        return func(*args, **kwargs)

    def _dropout(
        self, tensor: torch.Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> torch.Tensor:
        if not training or not p:
            return tensor
        kept = (self._numbers(tensor) >= p).to(tensor.dtype) / (1 - p)
        return tensor.mul_(kept) if inplace else tensor * kept

    def _numbers(self, like: torch.Tensor) -> torch.Tensor:
        purpose = Purpose.DROPOUT + (self.calls << 8)
        self.calls += 1
        if len(like) % len(self.keys):
            raise TrainingRefusedError(
                f"dropout_by_image cannot tell the {len(self.keys)} images of a batch apart in a tensor of shape"
                f" {tuple(like.shape)}; leave it out for this model (--set dropout_by_image=false)"
            )
        numbers = uniform(self.seed, purpose, self.keys.to(like.device), like.numel() // len(self.keys))
        return numbers.view(like.shape)
