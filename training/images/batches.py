"""Which images form which batch, and the data sets that give them.

An epoch's order follows from (seed, epoch) alone. It is cut into global batches; process r of W takes the r-th part of
each micro-batch. So the same images meet in a step for any number of processes and accumulation steps with the same
product, and where a run was resumed does not matter. Images that fill no whole global batch are left out of that epoch.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, Sampler

from ...data import BadImageError, SourceUnreachableError
from ..augmentation.counter_random import Purpose, seed_of
from ..augmentation.crops import Crop, draw_crops
from ..recipe import Augmentation
from .bad_images import Unusable
from .progressive import Progression
from .sources import SourceSplit, Split

Key = tuple[int, int, int]  # epoch, index, repeat
PIXELS_TOGETHER = 2**16  # of images that wait for an image processor; for one of 224 pixels the call is nothing


class EpochBatches(Sampler[list[Key]]):
    """The micro-batches of one process, as keys.

    Args:
        images: How many there are.
        batch_size: Of a micro-batch of one process.
        accumulation: Micro-batches in a step.
        rank, world: This process, and how many there are.
        repeats: Repeated augmentation: an image stands so often in the order, which is cut off at its usual length. Its
            neighbour, with which it is mixed, is another one each time and never itself.
        seed: Of the run.
        order: From a generator to an epoch's order of all images. `None`: any order.

    Example:

    ```python
    >>> [[index for _, index, _ in batch] for batch in EpochBatches(8, 2, seed=1)]
    [[7, 0], [1, 2], [4, 3], [6, 5]]
    >>> [[index for _, index, _ in batch] for batch in EpochBatches(8, 2, rank=1, world=2, seed=1)]
    [[1, 2], [6, 5]]

    ```
    """

    def __init__(
        self,
        images: int,
        batch_size: int,
        *,
        accumulation: int = 1,
        rank: int = 0,
        world: int = 1,
        repeats: int = 1,
        seed: int = 0,
        order: Callable[[torch.Generator], list[int]] | None = None,
    ) -> None:
        self.images, self.batch_size, self.accumulation = images, batch_size, accumulation
        self.rank, self.world, self.repeats, self.seed = rank, world, repeats, seed
        self.order = order
        self.epoch = 0

    @property
    def steps(self) -> int:
        """Optimisation steps in an epoch."""
        return self.images // (self.batch_size * self.world * self.accumulation)

    def __len__(self) -> int:
        return self.steps * self.accumulation

    def set_epoch(self, epoch: int) -> None:
        """The epoch that the next iteration is of; it seeds the order of the images."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[Key]]:
        epoch = self.epoch
        generator = torch.Generator().manual_seed(seed_of(self.seed, Purpose.ORDER, epoch))
        order = self.order(generator) if self.order else torch.randperm(self.images, generator=generator).tolist()
        for number in range(len(self)):
            start = (number * self.world + self.rank) * self.batch_size
            yield [self._key(epoch, order, place) for place in range(start, start + self.batch_size)]

    def _key(self, epoch: int, order: list[int], place: int) -> Key:
        """What stands at a place: 2 R images come R times, and each time their halves meet turned by one more."""
        block, within = divmod(place, 2 * self.repeats**2)
        repeat, within = divmod(within, 2 * self.repeats)
        pair, second = divmod(within, 2)
        image = 2 * self.repeats * block + 2 * ((pair + second * repeat) % self.repeats) + second
        return epoch, order[image % self.images], repeat


@dataclass
class TrainingImages(Dataset[Any]):
    """Batches of cropped images, by lists of keys.

    A batch has `images` (B, 3, height, width) uint8, `labels` (B,), or (B, K) where an image may have several, `keys`
    (B, 3), and what could not be used in `bad`.
    """

    split: Split
    size: tuple[int, int]
    settings: Augmentation
    seed: int
    skip_bad: bool = False
    progression: Progression | None = None  # sizes by epoch, in the place of `size`

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, key: Key) -> dict[str, Any]:
        return self._batch([key])

    def __getitems__(self, keys: list[Key]) -> dict[str, Any]:
        """A batch; in the place of one that holds an image to stop at, what is wrong with it in `unusable`."""
        try:
            return self._batch(keys)
        except BadImageError as error:
            return {"labels": torch.empty(0), "unusable": Unusable("", str(error))}
        except SourceUnreachableError as error:
            return {"labels": torch.empty(0), "unusable": Unusable("", str(error), unreachable=True)}

    def _batch(self, keys: list[Key]) -> dict[str, Any]:
        images, labels, bad = [], [], []
        together = torch.tensor(keys, dtype=torch.int64)
        size = self.size if self.progression is None else self.progression.at(keys[0][0])  # a batch is of one epoch
        for (_, index, _), crop in zip(keys, draw_crops(size, self.settings, self.seed, together), strict=True):
            image, label, named = self._usable(index, crop)
            images.append(crop.cut(image))
            labels.append(label)
            bad += named
        stacked = torch.from_numpy(np.stack(labels))
        return {"images": torch.stack(images), "labels": stacked, "keys": together, "bad": bad}

    def _usable(self, index: int, crop: Crop) -> tuple[Any, Any, list[tuple[str, str]]]:
        """The image, or the next one that can be used in its place; and those that cannot, with the reason."""
        bad: list[tuple[str, str]] = []
        for place in range(index, index + len(self)):
            try:
                return self._image(place % len(self), crop), self.split.labels[place % len(self)], bad
            except BadImageError as error:
                if not self.skip_bad:
                    raise
                bad.append((self.split.name(place % len(self)), str(error)))
        raise BadImageError("no image of the training split can be used; correct the source")

    def _image(self, index: int, crop: Crop) -> Any:
        return self.split.image(index, crop) if isinstance(self.split, SourceSplit) else self.split.image(index)


@dataclass
class EvaluationImages(Dataset[Any]):
    """Images as the saved model's processor makes them, with their labels; what cannot be used is `Unusable`.

    Args:
        bad: Where the main process lists what was left out.
    """

    split: Split
    processor: Any
    skip_bad: bool = False
    bad: dict[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, Any] | Unusable:
        [item] = self.__getitems__([index])
        return item

    def __getitems__(self, indices: list[int]) -> list[tuple[torch.Tensor, Any] | Unusable]:
        """A batch. Small images reach the processor together: most of what each would take is the call."""
        items: list[Any] = []
        waiting: dict[int, Image.Image] = {}  # by their place among the items
        pixels = 0
        for place, index in enumerate(indices):
            image = self._image(index)
            items.append(image)
            if isinstance(image, Unusable):
                continue
            waiting[place] = image
            pixels += image.width * image.height
            if pixels > PIXELS_TOGETHER:
                self._process(waiting, items)
                pixels = 0
        self._process(waiting, items)
        return [
            item if isinstance(item, Unusable) else (item, self.split.labels[index])
            for index, item in zip(indices, items, strict=True)
        ]

    def _image(self, index: int) -> Image.Image | Unusable:
        try:
            return self.split.image(index)
        except BadImageError as error:
            return Unusable(self.split.name(index), str(error))
        except SourceUnreachableError as error:
            return Unusable("", str(error), unreachable=True)

    def _process(self, waiting: dict[int, Image.Image], items: list[Any]) -> None:
        """Put the pixels of those that wait among the items."""
        if waiting:
            given = {"return_tensors": "pt", "input_data_format": "channels_last"}
            pixels = self.processor(images=list(waiting.values()), **given)["pixel_values"]
            for place, of_image in zip(waiting, pixels, strict=True):
                items[place] = of_image
            waiting.clear()


def as_it_is(batch: Any) -> Any:
    """The collator of a data set that gives whole batches."""
    return batch
