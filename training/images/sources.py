"""The images of a recipe: its splits, each an indexed list of PIL images and labels."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from ...data import BadImageError, SourceUnreachableError, open_images
from ...data.folder_source import FolderSource
from ...data.hub_names import look_for
from ...data.label_sets import LabelSets
from ...data.opening import kind_of
from ...data.parquet_source import ParquetSource
from ..errors import TrainingRefusedError
from ..recipe import BUILT_IN, Data
from .window_order import WindowOrder

HELD_OUT_SEED = 0  # not the run's: whatever a run's seed is, the same images are held out
SAMPLED = 64  # images of a split that are read to recognise it


class Split(Protocol):
    """Images by index; labels are an array, or `LabelSets` where an image may have several."""

    labels: Any

    def __len__(self) -> int: ...

    def image(self, index: int) -> Image.Image:
        """RGB; raises `BadImageError`."""
        ...

    def digest(self) -> str:
        """Of the images, to recognise them; raises `TrainingRefusedError` in an outage."""
        ...

    def name(self, index: int) -> str:
        """What it is called in messages."""
        ...


@dataclass
class ArraySplit:
    """Grey images in memory: (images, height, width) uint8."""

    images: np.ndarray[Any, Any]
    labels: np.ndarray[Any, Any]

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.images[index]).convert("RGB")

    def digest(self) -> str:
        """Of all pixels."""
        return _digest(np.ascontiguousarray(self.images))

    def name(self, index: int) -> str:
        return f"image {index}"


class SourceSplit:
    """Some images of what `open_images` opened; those without a label are left out.

    Args:
        window: How many images of a source that is read in groups are shuffled together.

    Attributes:
        order: From a generator to an epoch's order; `None`: any.
    """

    def __init__(self, source: Any, indices: np.ndarray[Any, Any] | None = None, window: int = 1) -> None:
        self.source, self.window = source, window
        labels = source.labels
        known = labels.known if isinstance(labels, LabelSets) else labels >= 0
        self.indices = np.flatnonzero(known) if indices is None else indices
        self.labels = labels[self.indices]
        self.order: WindowOrder | None = None
        if isinstance(source, ParquetSource) and len(self.indices):
            groups = np.searchsorted(source.group_ends, self.indices, side="right")
            self.order = WindowOrder(groups, window, np.diff(source.group_ends, prepend=0))

    def __len__(self) -> int:
        return len(self.indices)

    def image(self, index: int, reduce: Callable[[tuple[int, int]], float] | None = None) -> Image.Image:
        """RGB; `reduce` says of its size how many times smaller it may be given."""
        place = int(self.indices[index])
        return self.source.decode(self.source.encoded(place), place, reduce).image

    def digest(self) -> str:
        """Of how many bytes each image takes (each row group's images together, where there are such), and of 64 images
        as they are stored (of one, where each would cost a row group)."""
        count = 1 if self.order is not None else SAMPLED
        places: Any = np.unique(np.linspace(0, len(self) - 1, count).astype(np.int64)) if len(self) else []
        contents = b"".join(hashlib.sha256(self._stored(int(place))).digest() for place in places)
        return _digest(self.source.sizes_digest.encode() + contents)

    def _stored(self, index: int) -> bytes:
        try:
            file = self.source.encoded(int(self.indices[index])).file
            return file.read_bytes() if isinstance(file, Path) else file or b""
        except SourceUnreachableError as error:  # taken for nothing, it would be other data when the run goes on
            raise TrainingRefusedError(str(error)) from error
        except (OSError, BadImageError):
            return b""

    def name(self, index: int) -> str:
        name = self.source.name_of(int(self.indices[index]))
        split = self.source.split if isinstance(self.source, FolderSource) else None
        return name if split is None else f"{split}/{name}"


@dataclass
class Splits:
    """What a recipe trains on and measures on.

    Args:
        train, validation: Never the same images.
        test: `None` where the recipe names none.
        class_names: Of the labels 0, 1, ...
    """

    train: Split
    validation: Split
    test: Split | None
    class_names: list[str]

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels."""
        return isinstance(self.train.labels, LabelSets)

    def fingerprint(self) -> dict[str, Any]:
        """What has to be the same when a run goes on: the classes, how many images, their labels in order, and what
        `Split.digest` sees of the images."""
        names = "\n".join(self.class_names).encode(errors="surrogateescape")  # a folder's name need not be UTF-8
        parts = {"train": self.train, "validation": self.validation, "test": self.test}
        return {
            "classes": _digest(names),
            **{
                name: f"{len(part)} images, {_digest(_bytes_of(part.labels))}, {part.digest()}"
                for name, part in parts.items()
                if part is not None
            },
        }


def open_splits(data: Data) -> Splits:
    """Open what a recipe names.

    Raises:
        TrainingRefusedError: it is not there, has no labels, or its splits have other classes.

    Example:

    ```python
    >>> splits = open_splits(Data("digits"))
    >>> len(splits.train), len(splits.validation), splits.class_names[:3]
    (1438, 359, ['0', '1', '2'])

    ```
    """
    splits = _built_in(data) if data.source in BUILT_IN else _opened(data)
    if data.images is not None:
        chosen = _balanced(_strata(splits.train.labels), data.images)
        splits.train = _some(splits.train, chosen)
    order = getattr(splits.train, "order", None)
    if order is not None:
        splits.train.source.kept_groups = order.most_groups  # type: ignore[attr-defined]
    return splits


def planned_data(data: Data, multi_label: bool, say: Callable[[str], Any]) -> tuple[int, list[str], bool]:
    """How many images, the classes, and whether an image may have several labels, without fetching a data set.

    Args:
        multi_label: What the recipe says of that.
        say: Is told where the numbers are the recipe's own.
    """
    known: tuple[int, list[str], bool] | None = None
    if data.known_images is not None and data.known_classes is not None:
        known = data.known_images, [str(index) for index in range(data.known_classes)], multi_label
    distant = _is_distant(data.source)
    if distant and known is not None:
        say(f"{data.source} is not fetched for a plan. Planned with what the recipe says of it.")
        return known
    try:
        splits = _without_a_copy(data) if distant else open_splits(data)
    except TrainingRefusedError as error:
        if known is None:
            raise
        say(f"{error}. Planned with what the recipe says of it.")
        return known
    return len(splits.train), splits.class_names, splits.multi_label


def _without_a_copy(data: Data) -> Splits:
    try:
        return open_splits(replace(data, streaming=True))
    except TrainingRefusedError:  # no Parquet files, or no network and a copy from before
        return open_splits(data)


def _is_distant(source: str) -> bool:
    """Whether images would have to be fetched: they are on the Hub, or at an address."""
    try:
        return source not in BUILT_IN and ("://" in source or kind_of(source) == "hub")
    except ValueError:
        return False  # there is nothing of that name


def _built_in(data: Data) -> Splits:
    fixed = ["train_split", "validation_split", "test_split", "label", "streaming"]
    fixed += ["held_out"] if data.source == "mnist5k" else []
    usual = Data(data.source)
    ignored = [name for name in fixed if getattr(data, name) != getattr(usual, name)]
    if ignored:
        ways = " ".join(f"--set {name}={json.dumps(getattr(usual, name))}" for name in ignored)
        raise TrainingRefusedError(
            f"data.{ignored[0]} is not for {data.source}, whose labels and splits are its own; leave it out ({ways})"
        )
    try:
        if data.source == "mnist5k":
            from .mnist5k import load_digits

            train, held_out = load_digits()
            parts = [ArraySplit(train.images, train.labels), ArraySplit(held_out.images, held_out.labels)]
        else:
            from sklearn.datasets import load_digits as load_small

            bunch = load_small()
            images = (bunch.images * (255 / 16)).round().astype(np.uint8)  # grey levels of 0 to 16
            whole = ArraySplit(images, bunch.target.astype(np.int64))
            parts = [_some(whole, indices) for indices in held_out_indices(whole.labels, data.held_out)]
    except ImportError as error:
        package = {"sklearn": "scikit-learn"}.get(str(error.name), error.name)
        raise TrainingRefusedError(
            f"{data.source} comes with the package {package}; run: pip install {package}"
        ) from error
    return Splits(parts[0], parts[1], None, [str(digit) for digit in range(10)])


def _address(data: Data) -> str:
    """What to open. Of a Hub id that is streamed, its Parquet files: they have an index; a stream of rows has none."""
    if not data.streaming or "://" in data.source or kind_of(data.source) != "hub":
        return data.source
    look_for(data.source, "dataset")
    return f"hf://datasets/{data.source}"


def _opened(data: Data) -> Splits:
    def opened(split: str | None) -> Any:
        try:
            address = _address(data)
            source = open_images(address, split=split, label=data.label, streaming=data.streaming, multi_label=True)
            _ = source.labels  # read here, where one that is none of the classes is refused
        except ValueError as error:
            said = str(error).replace("pass one of them as split", "write one of them into data.train_split")
            raise TrainingRefusedError(said) from error
        if source.class_names is None:
            raise TrainingRefusedError(
                f"{data.source} has no labels; pass class folders, or a table with a label column"
            )
        return source

    train = opened(data.train_split)
    names = list(train.class_names)
    if len(names) < 2 and not train.multi_label:
        raise TrainingRefusedError(
            f"all images of {data.source} are of one class, {', '.join(names)}: nothing can be learnt; pass the folder"
            " that holds the folders of the classes"
        )
    others: dict[str, Any] = {}
    for part, split in (("validation", data.validation_split), ("test", data.test_split)):
        if split is not None:
            others[part] = opened(split)
            if list(others[part].class_names) != names:
                odd = sorted(set(names) ^ set(others[part].class_names)) or ["in another order"]
                raise TrainingRefusedError(
                    f"the {part} split {split!r} has other classes than the training split ({', '.join(odd[:5])}); give"
                    f" both the same: {train.naming_classes}"
                )
            if train.split is not None and others[part].split == train.split:  # whatever they are called in the recipe
                raise TrainingRefusedError(
                    f"data.{part}_split={split} is the split {train.split} of {data.source}, which the recipe trains"
                    f" on; name another one, or leave it out (--set {part}_split=null)"
                )
            if others[part].multi_label != train.multi_label:
                raise TrainingRefusedError(
                    f"the {part} split {split!r} and the training split differ: in one of them an image has several"
                    " labels, in the other one; give both the same"
                )
    if len(others) == 2 and others["validation"].split == others["test"].split is not None:
        raise TrainingRefusedError(
            f"data.test_split={data.test_split} is the split that is validated on, which would be measured twice and"
            " may decide what is kept; name another one, or leave it out (--set test_split=null)"
        )
    whole = SourceSplit(train, window=data.shuffle_window)
    if "validation" in others:
        splits = Splits(whole, SourceSplit(others["validation"]), None, names)
    else:
        kept, held = held_out_indices(_strata(whole.labels), data.held_out)
        splits = Splits(_some(whole, kept), _some(whole, held), None, names)
    splits.test = SourceSplit(others["test"]) if "test" in others else None
    return splits


def held_out_indices(labels: Any, share: float) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices to train on and held out: the same share of every class, of each at least one image, but never all.

    Example:

    ```python
    >>> kept, held = held_out_indices(np.array([0, 0, 0, 0, 0, 1, 1, 1, 1, 1]), 0.2)
    >>> len(kept), len(held)
    (8, 2)

    ```
    """
    labels = np.asarray(labels)
    random = np.random.default_rng(HELD_OUT_SEED)
    held: list[int] = []
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        most = len(members) - 1 if share < 1 else len(members)
        held.extend(members[: min(most, max(1, round(share * len(members))))] if share else [])
    chosen = np.zeros(len(labels), dtype=bool)
    chosen[np.asarray(held, dtype=np.int64)] = True
    if not chosen.any() or chosen.all():
        raise TrainingRefusedError(
            f"data.held_out={share} leaves no images to {'train on' if chosen.any() else 'validate on'}; write another"
            " share, or name data.validation_split"
        )
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _balanced(labels: np.ndarray[Any, Any], count: int) -> np.ndarray[Any, Any]:
    """So many indices, as equal a number of each class as there is."""
    random = np.random.default_rng(HELD_OUT_SEED)
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        turn[members] = np.arange(len(members))
    return np.sort(np.argsort(turn, kind="stable")[:count])


def _some(split: Any, indices: np.ndarray[Any, Any]) -> Any:
    if isinstance(split, ArraySplit):
        return ArraySplit(split.images[indices], split.labels[indices])
    return SourceSplit(split.source, split.indices[indices], split.window)


def _strata(labels: Any) -> np.ndarray[Any, Any]:
    """What a choice of images is balanced by: the labels; nothing, where an image may have several."""
    return np.zeros(len(labels), dtype=np.int64) if isinstance(labels, LabelSets) else np.asarray(labels)


def _bytes_of(labels: Any) -> bytes:
    return labels.tobytes() if isinstance(labels, LabelSets) else np.asarray(labels, dtype=np.int64).tobytes()


def _digest(content: Any) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
