"""Images by index, decoded when they are asked for: what every source of images gives.

A source holds no pixels. It can be pickled, so that the worker processes of a DataLoader can read from it.
"""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from PIL import Image

from .decoding import MAX_PIXELS, BadImage, BadImageError, decode_image

OnBadImage = Literal["stop", "skip"]
Label = int | tuple[int, ...] | None  # a class, the classes of a multi-label source, or none that is known


@dataclass(frozen=True)
class Sample:
    """One image.

    Args:
        image: PIL, RGB.
        label: Index into the source's `class_names`, or several in a tuple; `None` where there is none.
        name: What identifies it in the source: a path inside the folder, or a row of a file.
        index: Its place in the source.
    """

    image: Image.Image
    label: Label
    name: str
    index: int


class Encoded(NamedTuple):
    """An image as it is stored."""

    file: bytes | Path | None
    label: Label
    name: str


class ImageSource(ABC):
    """What `open_images` gives.

    `source[i]` is a `Sample`, or raises `BadImageError`. Iterating over the source, and `batches`, treat an image that
    cannot be used as `on_bad_image` says: "stop" raises, "skip" leaves it out and lists it in `bad_images`.

    Attributes:
        name: What was opened, as it was given.
        split: Which part of it; `None` where it has no parts.
        class_names: Names of the labels 0, 1, ...; `None` without labels. A class without images keeps its place.
        on_bad_image: "stop" or "skip".
        bad_images: Those that were left out so far, each once.
        max_pixels: Larger images cannot be used.
        multi_label: An image may have several labels, or none.
        passed_over: How many files beside the images were taken for none, by their endings.
        naming_classes: How a split gets a class of which it has no image.
        naming_images: How a file is called to be taken for an image.
    """

    naming_classes = "store the labels as a ClassLabel of the package datasets, which names all classes"
    naming_images = ""

    def __init__(
        self,
        name: str,
        *,
        split: str | None = None,
        class_names: tuple[str, ...] | None = None,
        on_bad_image: OnBadImage = "stop",
        max_pixels: int = MAX_PIXELS,
        multi_label: bool = False,
    ) -> None:
        if on_bad_image not in get_args(OnBadImage):
            raise ValueError(f"on_bad_image={on_bad_image!r} is not known; pass 'stop' or 'skip'")
        self.name = name
        self.split = split
        self.class_names = class_names
        self.on_bad_image = on_bad_image
        self.max_pixels = max_pixels
        self.multi_label = multi_label
        self.bad_images: list[BadImage] = []
        self.passed_over: Counter[str] = Counter()

    @abstractmethod
    def encoded(self, index: int) -> Encoded:
        """The image as it is stored: nothing is decoded."""

    def name_of(self, index: int) -> str:
        """What an image is called, without decoding it."""
        return self.encoded(index).name

    @property
    @abstractmethod
    def labels(self) -> Any:
        """The label of every image, (images,) int64, without reading the images; -1 where there is none.

        `LabelSets` where an image may have several.
        """

    def stored_sizes(self) -> np.ndarray[Any, Any] | None:
        """How many bytes each image takes as it is stored, (images,) int64, without reading the images.

        -1 where that is not known; of row groups, not of images, where a source is read in these; `None` where nothing
        is known.
        """
        return None

    @cached_property
    def sizes_digest(self) -> str:
        """Of `stored_sizes`, to tell the same images from others; empty where nothing is known."""
        sizes = self.stored_sizes()
        return "" if sizes is None else hashlib.sha256(np.asarray(sizes, dtype="<i8").tobytes()).hexdigest()[:16]

    @abstractmethod
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Read and decode one image.

        Raises:
            IndexError: there is no such index.
            BadImageError: it cannot be used, whatever `on_bad_image` is.
        """
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"there are {size} images, and no index {index}")
        index = int(index) % size
        return self.decode(self.encoded(index), index)

    def __iter__(self) -> Iterator[Sample]:
        for index in range(len(self)):
            try:
                yield self[index]
            except BadImageError as error:
                self.leave_out(BadImage(index, self.name_of(index), str(error)))

    def decode(self, stored: Encoded, index: int, reduce: Callable[[tuple[int, int]], float] | None = None) -> Sample:
        """The sample of an image as it is stored, perhaps smaller (see `decode_image`); raises `BadImageError`."""
        if stored.file is None:
            raise BadImageError(f"{stored.name}: there is no image in this row")
        image = decode_image(stored.file, stored.name, max_pixels=self.max_pixels, reduce=reduce)
        return Sample(image=image, label=stored.label, name=stored.name, index=index)

    def leave_out(self, bad: BadImage) -> None:
        """List an image that cannot be used, or raise, as `on_bad_image` says."""
        if self.on_bad_image == "stop":
            raise BadImageError(f"{bad.reason}; repair or remove it, or pass on_bad_image='skip'")
        if all(known.index != bad.index for known in self.bad_images):
            self.bad_images.append(bad)

    @property
    def class_counts(self) -> dict[str, int]:
        """How many images each class has, unusable ones included; empty without labels."""
        if self.class_names is None:
            return {}
        labels = self.labels
        if self.multi_label:
            return dict(zip(self.class_names, labels.counts().tolist(), strict=True))
        counts = np.bincount(labels[labels >= 0], minlength=len(self.class_names))
        return dict(zip(self.class_names, counts.tolist(), strict=True))

    def describe(self) -> dict[str, Any]:
        """What a result says about its data."""
        return {
            "source": self.name,
            "split": self.split,
            "images": len(self),
            "classes": None if self.class_names is None else list(self.class_names),
        }

    def __repr__(self) -> str:
        classes = "no labels" if self.class_names is None else f"{len(self.class_names)} classes"
        split = "" if self.split is None else f" ({self.split})"
        return f"<{type(self).__name__} {self.name}{split}: {len(self):,} images, {classes}>"
