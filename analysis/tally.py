"""What `collect` has seen so far: accumulators with names, which can be merged, stored and taken up again.

Shapes: L layers, H heads, N tokens, D width of a head, M cells, K classes.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from .accumulators import Moments, Quantiles, Sums
from .statistics.layers_together import Taken
from .statistics.precision import full_precision

VECTORS = ("query", "key", "value", "output")
ACCUMULATORS = ("moments", "quantiles", "classes", "class_quantiles")  # of a tally, each with a state of its own


class Cell(NamedTuple):
    """One number for each image: a statistic of a head, or of a whole layer where `head` is None."""

    statistic: str
    layer: int
    head: int | None


class Batch:
    """What is found in one batch; it is added as a whole, so that a run can be stopped at any moment.

    Args:
        number: Which batch of this process it is.
        grid: Rows and columns of patches, and the tokens before them.

    Attributes:
        values: (statistic, layer) -> (B, H), or (B,) for a whole layer.
        vectors: (name, layer) -> their number, sum (H, D) and sum of products (H, D, D).
        maps: (name, layer) -> sum over images of a number for each token or patch.
        hiding: layer -> whether a mask hides tokens there, of layers that have one.
    """

    def __init__(self, number: int, grid: tuple[int, ...]) -> None:
        self.number = number
        self.grid = grid
        self.values: dict[tuple[str, int], torch.Tensor] = {}
        self.vectors: dict[tuple[str, int], tuple[int, torch.Tensor, torch.Tensor]] = {}
        self.maps: dict[tuple[str, int], torch.Tensor] = {}
        self.hiding: dict[int, torch.Tensor] = {}

    def add_vectors(self, name: str, taken: Taken, vectors: torch.Tensor) -> None:
        """Sum up queries, keys, values or outputs: (layers * B, H, N, D)."""
        count = len(vectors) // len(taken.layers) * vectors.shape[2]
        # Float32 within an image, float64 over images: the sum does not depend on who is in the batch.
        vectors = vectors.to(torch.promote_types(vectors.dtype, torch.float32))
        with full_precision(vectors.device):
            first, second = vectors.sum(dim=2), vectors.mT @ vectors
        for layer, *sums in zip(taken.layers, *(_over_images(it, taken) for it in (first, second)), strict=True):
            self.vectors[name, layer] = (count, sums[0], sums[1])

    def add_maps(self, name: str, taken: Taken, numbers: torch.Tensor) -> None:
        """Sum up a number for each token or patch: (layers * B, N)."""
        self.maps |= {(name, layer): it for layer, it in zip(taken.layers, _over_images(numbers, taken), strict=True)}

    def fetch(self) -> None:
        """Bring all of it from the device, in a few copies: each waits for what was computed before.

        Raises:
            ValueError: queries, keys, values or outputs hold NaN or infinity, or a mask hides tokens; it names the
                first such layer.
        """
        for layer, hides in zip(self.hiding, _fetched(list(self.hiding.values())), strict=True):
            if hides:
                raise ValueError(
                    f"layer {layer}: the attention mask hides tokens, which would count as queries and in every mean;"
                    " pass images without padding, or use record and attention_statistics, whose rows can be chosen"
                )
        self.values = dict(zip(self.values, _fetched(list(self.values.values())), strict=True))
        self.maps = dict(zip(self.maps, _fetched(list(self.maps.values())), strict=True))
        sums = iter(_fetched([it for _, *sums in self.vectors.values() for it in sums]))
        self.vectors = {place: (count, next(sums), next(sums)) for place, (count, *_) in self.vectors.items()}
        for name, layer in sorted(self.vectors, key=lambda place: (place[1], VECTORS.index(place[0]))):
            if not self.vectors[name, layer][1].isfinite().all():
                raise ValueError(
                    f"layer {layer}: the {name} vectors hold NaN or infinity; look at the weights up to this layer and"
                    " at the pixel values, or compute in float32"
                )


def _over_images(numbers: torch.Tensor, taken: Taken) -> tuple[torch.Tensor, ...]:
    """The sum over images, (layers * B, ...), in float64: one tensor (...) for each layer."""
    return numbers.double().unflatten(0, (len(taken.layers), -1)).sum(dim=1).unbind()


def _fetched(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same in float64 on the CPU, in one copy from a device."""
    devices = {it.device for it in tensors}
    if len(devices) != 1 or torch.device("cpu") in devices:
        return [it.cpu().double() for it in tensors]
    flat = torch.cat([it.reshape(-1) for it in tensors]).cpu().double()
    return [part.view(it.shape) for part, it in zip(flat.split([it.numel() for it in tensors]), tensors, strict=True)]


class Tally:
    """Accumulators of everything, for images that were seen by one process or by several.

    Args:
        num_classes: Also keep means and variances for each class; 0: not.
        class_quantiles: And quantiles for each class.

    Attributes:
        images: How many were seen.
        batches: How many batches were finished, counted in the order of this process.
        whole: Whether no batch is half added.
        bad: Images that were left out, as dictionaries.
        cells: What the columns of `moments` and `quantiles` are; `None` before the first batch.
        vectors: (name, layer) -> mean and second moment of each head's queries, keys, values or outputs.
        maps: (name, layer) -> sum over images of a number for each token, while all images have the same tokens.
    """

    def __init__(self, num_classes: int = 0, class_quantiles: bool = False) -> None:
        self.num_classes = num_classes
        self.has_class_quantiles = class_quantiles
        self.images = 0
        self.batches = 0
        self.whole = True
        self.bad: list[dict[str, Any]] = []
        self.cells: list[Cell] | None = None
        self.moments = Moments((0,))
        self.quantiles = Quantiles(0)
        self.classes = Moments((num_classes, 0))
        self.class_quantiles = Quantiles(0)  # cell: class * columns + column
        self.vectors: dict[tuple[str, int], Sums] = {}
        self.maps: dict[tuple[str, int], torch.Tensor] | None = {}
        self.grid: tuple[int, ...] | None = None  # rows, columns and tokens before them, of the maps

    def add(self, batch: "Batch", labels: torch.Tensor | None) -> None:
        """Add what was found in a batch; labels (B,), negative without one.

        Raises:
            ValueError: the statistics are not those of the batches before, a label has no name, or vectors are not
                finite.
        """
        batch.fetch()
        cells = [
            Cell(statistic, layer, head)
            for (statistic, layer), numbers in batch.values.items()
            for head in ([None] if numbers.ndim == 1 else range(numbers.shape[1]))
        ]
        table = torch.cat([numbers.reshape(len(numbers), -1) for numbers in batch.values.values()], dim=1)
        if self.cells is not None and cells != self.cells:
            raise ValueError("the model gives other statistics for this batch than before; pass a layout that fits all")
        if self.num_classes and labels is not None and int(labels.max()) >= self.num_classes:
            raise ValueError(
                f"there is a label {int(labels.max())} and {self.num_classes} class names; name all classes"
            )
        self.whole = False
        if self.cells is None:
            self._use(cells)
        self.moments.update(table)
        self.quantiles.update(table)
        if self.num_classes and labels is not None:
            known = labels >= 0
            self.classes.update_rows(labels[known], table[known])
            if self.has_class_quantiles:
                self.class_quantiles.update_rows(labels[known], table[known])
        for place, (count, first, second) in batch.vectors.items():
            sums = self.vectors.setdefault(place, Sums(tuple(first.shape)))
            sums.update(count, first, second, ...)
        self._add_maps(batch)
        self.images += len(table)
        self.batches = batch.number + 1
        self.whole = True

    def _add_maps(self, batch: "Batch") -> None:
        if self.grid is None:
            self.grid = batch.grid
        if self.maps is None or batch.grid != self.grid:  # images with other tokens have no place in the maps
            self.maps = None
            return
        for place, total in batch.maps.items():
            self.maps[place] = self.maps[place] + total if place in self.maps else total

    def merge(self, other: "Tally") -> None:
        """Add what another one has seen."""
        self.images += other.images
        self.bad += other.bad
        if other.cells is None:  # it saw no image
            return
        if self.cells is None:
            self._use(other.cells)
        assert self.cells == other.cells, "two tallies of the same run have the same cells"
        self.moments.merge(other.moments)
        self.quantiles.merge(other.quantiles)
        self.classes.merge(other.classes)
        self.class_quantiles.merge(other.class_quantiles)
        for place, sums in other.vectors.items():
            if place in self.vectors:
                self.vectors[place].merge(sums)
            else:
                self.vectors[place] = sums
        if self.maps is None or other.maps is None or (self.grid or other.grid) != other.grid:
            self.maps = None
        else:
            self.grid = other.grid
            for place, total in other.maps.items():
                self.maps[place] = self.maps[place] + total if place in self.maps else total

    def _use(self, cells: list[Cell]) -> None:
        self.cells = list(cells)
        self.moments = Moments((len(cells),))
        self.quantiles = Quantiles(len(cells))
        self.classes = Moments((self.num_classes, len(cells)))
        self.class_quantiles = Quantiles(self.num_classes * len(cells) if self.has_class_quantiles else 0)

    # ---- as tensors and plain values: for a file, or for another process

    def state(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Everything, as tensors by name and as values for JSON."""
        tensors: dict[str, torch.Tensor] = {}
        for name in ACCUMULATORS:
            tensors |= {f"{name}/{part}": tensor for part, tensor in getattr(self, name).state().items()}
        for (name, layer), sums in self.vectors.items():
            tensors |= {f"vectors/{name}/{layer}/{part}": tensor for part, tensor in sums.state().items()}
        for (name, layer), total in (self.maps or {}).items():
            tensors[f"maps/{name}/{layer}"] = total
        values = {
            "num_classes": self.num_classes,
            "class quantiles": self.has_class_quantiles,
            "images": self.images,
            "batches": self.batches,
            "bad": self.bad,
            "cells": self.cells,
            "grid": self.grid,
            "one grid": self.maps is not None,
        }
        return tensors, json.loads(json.dumps(values))

    @classmethod
    def from_state(cls, tensors: Mapping[str, torch.Tensor], values: Mapping[str, Any]) -> "Tally":
        """The opposite of `state`."""
        tally = cls(values["num_classes"], values.get("class quantiles", False))
        tally.images, tally.batches, tally.bad = values["images"], values["batches"], list(values["bad"])
        tally.grid = None if values["grid"] is None else tuple(values["grid"])
        if values["cells"] is not None:
            tally._use([Cell(*cell) for cell in values["cells"]])
        parts: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}
        for path, tensor in tensors.items():
            *folders, part = path.split("/")
            parts.setdefault(tuple(folders), {})[part] = tensor
        for name in ACCUMULATORS:
            if (name,) in parts:  # a file of an earlier version has no quantiles of classes
                getattr(tally, name).load_state(parts[name,])
        for place, state in parts.items():
            if place[0] == "vectors":
                sums = Sums(tuple(state["first"].shape))
                sums.load_state(state)
                tally.vectors[place[1], int(place[2])] = sums
            elif place[0] == "maps":
                assert tally.maps is not None
                tally.maps |= {(place[1], int(layer)): total for layer, total in state.items()}
        if not values["one grid"]:
            tally.maps = None
        return tally
