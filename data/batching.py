"""Batches of pixel values, every image exactly once, also when several processes share the work."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset

from ..configuration.reasons import first_line
from .decoding import BadImage, BadImageError, SourceUnreachableError
from .image_source import Encoded, ImageSource, Label
from .table_source import StreamingSource

NO_LABEL = -100  # what torch's cross-entropy passes over


@dataclass(frozen=True)
class _Refused:
    """What ends the batches: the transform failed, or the source does not answer."""

    message: str


class ImageDataset(Dataset[dict[str, Any]]):
    """A torch data set over a source, for a DataLoader or a Trainer.

    An item has `pixel_values` (channels, height, width), `labels` (-100 without one), `index` and `name`. An image
    that cannot be used raises `BadImageError`, whatever the source's `on_bad_image` is: the length is fixed.

    Args:
        source: From `open_images`.
        transform: An image processor of transformers, or a function from a PIL image to a tensor (channels, height,
            width).
    """

    def __init__(self, source: ImageSource, transform: Any) -> None:
        self.source = source
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return _item(self.source, self.transform, self.source.encoded(int(index)), int(index))


@dataclass(frozen=True)
class ImageBatches:
    """What `batches` gives: iterate over it, any number of times.

    Attributes:
        source, transform, batch_size, num_workers, shard, images, seed: As given to `batches`.
        first_batch: How many batches of this shard are left out at the beginning.
    """

    source: ImageSource
    transform: Any
    batch_size: int
    num_workers: int = 0
    shard: tuple[int, int] = (0, 1)
    images: int | None = None
    seed: int = 0
    first_batch: int = 0

    def __post_init__(self) -> None:
        rank, world = self.shard
        if self.batch_size < 1 or self.num_workers < 0 or (self.images is not None and self.images < 1):
            raise ValueError(
                f"batch_size={self.batch_size}, num_workers={self.num_workers}, images={self.images}: pass a batch_size"
                " and images from 1 up, and num_workers from 0 up"
            )
        if not 0 <= rank < world:
            raise ValueError(f"shard={self.shard} is not (rank, world) with 0 <= rank < world; pass such a pair")

    @property
    def indices(self) -> list[int]:
        """The images of this shard, in their order."""
        size, (rank, world) = len(self.source), self.shard
        if self.images is None or self.images >= size:
            return list(range(rank, size, world))
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(size, generator=generator)[: self.images].sort().values
        return chosen[rank::world].tolist()

    def __len__(self) -> int:
        """How many batches are still to come, at most: a batch of which no image can be used is left out."""
        return max(math.ceil(len(self.indices) / self.batch_size) - self.first_batch, 0)

    def starting_at(self, batch: int) -> "ImageBatches":
        """The same without the first `batch` batches, which are not read."""
        return replace(self, first_batch=batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for _, items in self.numbered():
            yield items

    def numbered(self) -> Iterator[tuple[int, dict[str, Any]]]:
        """Pairs of a batch's number in the shard, from 0, and the batch."""
        for number, items in enumerate(self._loader(), start=self.first_batch):
            usable = []
            for item in items:
                if isinstance(item, BadImage):
                    self.source.leave_out(item)
                elif isinstance(item, _Refused):
                    raise ValueError(item.message)
                else:
                    usable.append(item)
            if usable:
                yield number, collate(usable)

    def _loader(self) -> DataLoader[Any]:
        # Failures travel as items: an exception raised in a worker reaches the main process as a page of text.
        if isinstance(self.source, StreamingSource):
            # One worker at most: in several, datasets would hand out its files and lose the order.
            workers = min(self.num_workers, 1)
            return DataLoader(_Stream(self), batch_size=None, num_workers=workers)
        indices = self.indices[self.first_batch * self.batch_size :]
        chunks = [indices[start : start + self.batch_size] for start in range(0, len(indices), self.batch_size)]
        dataset = _Lenient(self.source, self.transform)
        return DataLoader(dataset, batch_sampler=chunks, num_workers=self.num_workers, collate_fn=list)


def batches(
    source: ImageSource,
    transform: Any,
    batch_size: int = 32,
    num_workers: int = 0,
    shard: tuple[int, int] = (0, 1),
    *,
    images: int | None = None,
    seed: int = 0,
) -> ImageBatches:
    """Every image of a source once, in batches.

    Args:
        source: From `open_images`.
        transform: An image processor of transformers, or a function from a PIL image to a tensor (channels, height,
            width).
        batch_size: Images in a batch; the last one has what is left.
        num_workers: Processes that read and decode; 0: this one. With workers, the order is the same. A Hub
            id that is streamed is read by one at most.
        shard: (rank, world): this process takes images rank, rank + world, ... Nothing is repeated to make shares
            even, so that a share may be one image smaller, or empty.
        images: Only so many, drawn at random with `seed` and in their order; of a Hub id that is streamed, the first.

    Returns:
        An iterable of dictionaries with `pixel_values` (B, channels, height, width), `labels` (B,; -100 where there is
        none; of a multi-label source (B, classes) of 0 and 1), `index` (B,) and `name` (a list). With
        `on_bad_image="skip"`, images that cannot be used are missing from their batch and listed in
        `source.bad_images`.

    Raises:
        ValueError: an image cannot be used and the source says "stop"; the transform fails; images of one batch differ
            in size.

    Example:

    ```python
    >>> from PIL import Image
    >>> from pathlib import Path
    >>> import numpy, torch
    >>> from qkvit.data import open_images
    >>> Path("dots").mkdir()
    >>> for i in range(5):
    ...     Image.new("RGB", (4, 4)).save(f"dots/{i}.png")
    >>> def to_tensor(image):
    ...     return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255
    >>> [batch["index"].tolist() for batch in batches(open_images("dots"), to_tensor, batch_size=2)]
    [[0, 1], [2, 3], [4]]

    ```
    """
    return ImageBatches(source, transform, batch_size, num_workers, shard, images, seed)


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items of an `ImageDataset` as one batch."""
    sizes = {tuple(item["pixel_values"].shape) for item in items}
    if len(sizes) > 1:
        raise ValueError(
            f"images of one batch have the sizes {sorted(sizes)} after the transform; let it resize and crop all of"
            " them to one size, or pass batch_size=1"
        )
    return {
        "pixel_values": torch.stack([item["pixel_values"] for item in items]),
        "labels": torch.stack([torch.as_tensor(item["labels"]) for item in items]),
        "index": torch.tensor([item["index"] for item in items]),
        "name": [item["name"] for item in items],
    }


class _Lenient(Dataset[Any]):
    """Gives failures as items."""

    def __init__(self, source: ImageSource, transform: Any) -> None:
        self.source = source
        self.transform = transform

    def __getitem__(self, index: int) -> Any:
        try:
            stored = self.source.encoded(index)
        except BadImageError as error:
            return BadImage(index, self.source.name_of(index), str(error))
        except SourceUnreachableError as error:
            return _Refused(str(error))
        return _lenient_item(self.source, self.transform, stored, index)


class _Stream(IterableDataset[Any]):
    """Lists of items of one shard."""

    def __init__(self, plan: ImageBatches) -> None:
        self.plan = plan

    def __iter__(self) -> Iterator[list[Any]]:
        plan, source = self.plan, self.plan.source
        assert isinstance(source, StreamingSource)
        rank, world = plan.shard
        pending: list[Any] = []
        taken = 0
        try:
            for index, stored in enumerate(islice(source.all_encoded(), plan.images)):
                if index % world != rank:
                    continue
                taken += 1
                if taken <= plan.first_batch * plan.batch_size:
                    continue
                pending.append(_lenient_item(source, plan.transform, stored, index))
                if taken % plan.batch_size == 0:
                    yield pending
                    pending = []
        except SourceUnreachableError as error:
            pending.append(_Refused(str(error)))
        if pending:
            yield pending


def _lenient_item(source: ImageSource, transform: Any, stored: Encoded, index: int) -> Any:
    try:
        return _item(source, transform, stored, index)
    except BadImageError as error:
        return BadImage(index, stored.name, str(error))
    except (_TransformError, SourceUnreachableError) as error:
        return _Refused(str(error))


def _item(source: ImageSource, transform: Any, stored: Encoded, index: int) -> dict[str, Any]:
    sample = source.decode(stored, index)
    try:
        pixel_values = _as_function(transform)(sample.image)
    except Exception as error:
        width, height = sample.image.size
        raise _TransformError(
            f"the transform failed on {stored.name} of {width} x {height} pixels: {first_line(error)}"
        ) from error
    return {"pixel_values": pixel_values, "labels": _target(source, sample.label), "index": index, "name": stored.name}


def _target(source: ImageSource, label: Label) -> Any:
    if not source.multi_label:
        return NO_LABEL if label is None else label
    target = torch.zeros(len(source.class_names or ()))
    if label is None:
        return target + NO_LABEL
    target[list(label) if isinstance(label, tuple) else label] = 1
    return target


class _TransformError(ValueError):
    pass


def _as_function(transform: Any) -> Callable[[Any], torch.Tensor]:
    if not hasattr(transform, "preprocess"):
        return transform

    def prepare(image: Any) -> torch.Tensor:
        # Said outright: of a picture three pixels high, the processor would take the rows for the colours. As an array:
        # with torchvision, transformers 5.17 puts the colours of an image first, and then takes them to be last.
        prepared = transform(images=np.array(image), return_tensors="pt", input_data_format="channels_last")
        return prepared["pixel_values"][0]

    return prepare
