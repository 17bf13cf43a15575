"""Layers that wait for each other, so that their statistics are taken together.

A layer of few tokens is done sooner than Python has called what it takes, and on a GPU sooner than the processor has
told the device of it. So layers wait until there is work enough, and are then given on one after the other in the
dimension of images, as if they were one layer.

Shapes: B images, H heads, N tokens.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from .fused_gpu import suits

# Scores that are work enough, by the kind of device. A layer of small/16 has 2.3e5 an image at 197 tokens, 6.3e6 at
# 1,025, 1.0e8 at 4,097.
SCORES_AT_ONCE = {"cuda": 2**27, "cpu": 2**22}
BYTES_AT_ONCE = 2**28  # of the tensors that wait; on a GPU, joined they are there twice for a moment
# On a CPU; some of what is made for an image and a layer is larger than its tensors.
LAYERS_AT_ONCE, IMAGES_AT_ONCE = 16, 8


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
        self._waiting: list[int] = []
        self._held: _Room | _Parts | None = None
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
        scores, size = query.shape[:3].numel() * query.shape[2], sum(it.nbytes for it in tensors.values())
        enough = SCORES_AT_ONCE[query.device.type]
        if self._held is None:
            layers = min(LAYERS_AT_ONCE, -(-enough // scores), -(-BYTES_AT_ONCE // size))
            self._held = _Room(tensors, layers) if query.device.type == "cpu" else _Parts()
        self._held.put(tensors)
        self._kind = kind
        self._waiting.append(layer)
        self._scores += scores
        self._bytes += size
        if self._scores >= enough or self._bytes >= BYTES_AT_ONCE or self._held.is_full:
            yield from self.flush()

    def flush(self) -> Iterator[Taken]:
        """Those that wait: no more layers come, or none that go with them."""
        layers, held, kind = tuple(self._waiting), self._held, self._kind
        self.forget()
        if held is not None:
            scaling, groups, _ = kind
            yield Taken(layers, held.joined(), scaling, None, groups)


class _Room:
    """Tensors on a CPU, copied as they come: they are in its caches then, and their memory can serve the next layer.

    In one piece: pieces that are as large as each other go back to the system when they are freed, which clears their
    pages before it gives them out again.
    """

    def __init__(self, tensors: dict[str, torch.Tensor], layers: int) -> None:
        sizes = [-(-layers * it.nbytes // 64) * 64 for it in tensors.values()]
        parts = torch.empty(sum(sizes), dtype=torch.uint8, device="cpu").split(sizes)
        self._tensors = {
            name: part[: layers * it.nbytes].view(it.dtype).view(layers, *it.shape)
            for part, (name, it) in zip(parts, tensors.items(), strict=True)
        }
        self._layers, self._count = layers, 0

    @property
    def is_full(self) -> bool:
        return self._count == self._layers

    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            self._tensors[name][self._count].copy_(tensor)
        self._count += 1

    def joined(self) -> dict[str, torch.Tensor]:
        return {name: tensor[: self._count].flatten(0, 1) for name, tensor in self._tensors.items()}


class _Parts:
    """Tensors on a GPU, joined when the last one has come."""

    is_full = False

    def __init__(self) -> None:
        self._parts: list[dict[str, torch.Tensor]] = []

    def put(self, tensors: dict[str, torch.Tensor]) -> None:
        self._parts.append(dict(tensors))

    def joined(self) -> dict[str, torch.Tensor]:
        if len(self._parts) == 1:
            return self._parts[0]
        # One name at a time, and not kept meanwhile: what is joined goes as its parts come.
        return {name: torch.cat([it.pop(name) for it in self._parts]) for name in tuple(self._parts[0])}


def pays_to_wait(query: torch.Tensor, value: torch.Tensor | None = None) -> bool:
    """Whether calls and launches are much of what a layer's statistics cost.

    So they are on a GPU where the fused kernels suit, and on a CPU for layers of few images, of which four or more are
    taken at once: with fewer, copying them costs as much.
    """
    if query.device.type == "cpu":
        scores = query.shape[:3].numel() * query.shape[2]
        return 0 < len(query) <= IMAGES_AT_ONCE and 4 * scores <= SCORES_AT_ONCE["cpu"]
    return query.is_cuda and suits(query, value)
