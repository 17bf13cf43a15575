"""Layers that wait for each other, so that their statistics are taken together.

On a GPU a layer of few tokens is done sooner than the processor has told the device of it. So layers wait until there
is work enough, and are then given on one after the other in the dimension of images, as if they were one layer.

Shapes: B images, H heads, N tokens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .fused_gpu import suits

# A layer of small/16 has 2.3e5 scores an image at 197 tokens, 6.3e6 at 1,025, 1.0e8 at 4,097.
SCORES_AT_ONCE = 2**27
BYTES_AT_ONCE = 2**28  # of the tensors that wait; joined they are there twice for a moment


class Taken(NamedTuple):
    """Layers that are taken together: tensors are (layers * B, H, N, ...), the first layer's images first."""

    layers: tuple[int, ...]
    tensors: dict[str, torch.Tensor]
    scaling: float
    mask: torch.Tensor | None
    groups: frozenset[str]

    def by_layer(self, numbers: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Numbers (layers * B, ...) as one tensor (B, ...) for each layer."""
        return numbers.unflatten(0, (len(self.layers), -1)).unbind()


class LayersTogether:
    """Hands on layers of one shape together, where that saves time, and each one alone elsewhere."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Leave out those that still wait."""
        self._waiting: dict[int, dict[str, torch.Tensor]] = {}
        self._kind: Any = None
        self._scores = self._bytes = 0

    def add(
        self,
        layer: int,
        tensors: dict[str, torch.Tensor],
        scaling: float,
        mask: torch.Tensor | None,
        groups: frozenset[str],
    ) -> Iterator[Taken]:
        """A layer comes, with its "query" (B, H, N, D) and what else is wanted of it; gives what is ready."""
        query = tensors["query"]
        kind = (scaling, groups, [(name, it.shape, it.dtype, it.device) for name, it in tensors.items()])
        if mask is not None or kind != self._kind or layer in self._waiting:
            yield from self.flush()
        if mask is not None or not pays_to_wait(query, tensors.get("value")):
            yield Taken((layer,), tensors, scaling, mask, groups)
            return
        self._kind = kind
        self._waiting[layer] = tensors
        self._scores += query.shape[:3].numel() * query.shape[2]
        self._bytes += sum(it.nbytes for it in tensors.values())
        if self._scores >= SCORES_AT_ONCE or self._bytes >= BYTES_AT_ONCE:
            yield from self.flush()

    def flush(self) -> Iterator[Taken]:
        """Those that wait: no more layers come, or none that go with them."""
        waiting, kind = self._waiting, self._kind
        self.forget()
        if not waiting:
            return
        scaling, groups, names = kind
        layers, each = tuple(waiting), list(waiting.values())
        if len(layers) == 1:
            yield Taken(layers, each[0], scaling, None, groups)
            return
        # One name at a time, and not kept meanwhile: what is joined goes as its parts come.
        tensors = {name: torch.cat([it.pop(name) for it in each]) for name, *_ in names}
        yield Taken(layers, tensors, scaling, None, groups)


def pays_to_wait(query: torch.Tensor, value: torch.Tensor | None = None) -> bool:
    """Whether launches are what a layer's statistics cost: on a GPU, where the fused kernels suit."""
    return query.is_cuda and suits(query, value)
