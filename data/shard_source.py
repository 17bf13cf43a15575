"""WebDataset shards: images and labels in tar files, found by their index and read from where they lie."""

import json
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .columns import LABEL_COLUMNS, Columns, refuse_multi_hot, several_labels
from .decoding import BadImageError, SourceUnreachableError, is_outage
from .folder_source import endings_of
from .image_source import Encoded, ImageSource, Label
from .label_sets import LabelSets
from .shard_index import ShardIndex, expanded, index_of
from .splits import by_split, choose_split, files_ending

CLASSES = "classes.txt"


class ShardSource(ImageSource):
    """The samples of tar files, in their order.

    Args:
        shards: The files.
        label: Which entry of the .json files is the label. `None`: the .cls files, or an entry with a usual name.
        multi_label: The labels may be lists.
    """

    naming_classes = f"write the names of all classes into {CLASSES} beside the shards"
    naming_images = "an image is called NAME.jpg, NAME.png and the like, with no dot in NAME"

    def __init__(
        self, shards: list[Path], *, name: str, label: str | None, multi_label: bool = False, **options: Any
    ) -> None:
        self._shards = shards
        self._indices = [index_of(shard) for shard in shards]
        self._ends = np.cumsum([len(index) for index in self._indices])
        if not self._ends[-1]:
            raise ValueError(
                f"{name} holds no images: no file in it is called NAME.jpg, NAME.png, ..., with no dot in"
                " NAME; pass other shards, or name the files so"
            )
        values = _label_values(shards, self._indices, name, label)
        lists = any(isinstance(value, list) for value in values)
        if lists and not multi_label:
            raise ValueError(several_labels(name, label or "label"))
        if lists:
            refuse_multi_hot([_as_list(value) for value in values], name)
        columns = _columns(values, name, _class_names(shards), lists)
        labels = [columns.label_of(_as_list(value) if lists else value) for value in values]
        classes = columns.class_names if any(value is not None for value in values) else None
        super().__init__(name, class_names=classes, multi_label=lists, **options)
        names = (index.passed_over[place] for index in self._indices for place in range(len(index.passed_over)))
        self.passed_over = endings_of(names)
        self._labels: Any = (
            LabelSets(labels, len(classes or ()))  # type: ignore[arg-type]
            if lists
            else np.asarray([-1 if each is None else each for each in labels], dtype=np.int64)
        )

    def __len__(self) -> int:
        return int(self._ends[-1])

    @property
    def labels(self) -> Any:
        return self._labels

    def name_of(self, index: int) -> str:
        shard, inside = self._place(index)
        return f"{self._shards[shard].name}/{self._indices[shard].names[inside]}"

    def stored_sizes(self) -> np.ndarray[Any, Any]:
        return np.concatenate([index.sizes for index in self._indices])

    def encoded(self, index: int) -> Encoded:
        shard, inside = self._place(index)
        found, name = self._indices[shard], self.name_of(index)
        size = int(found.sizes[inside])
        if size < 0:
            return Encoded(None, self._label(index), name)
        try:
            with self._shards[shard].open("rb") as file:
                file.seek(int(found.offsets[inside]))
                content = file.read(size)
        except OSError as error:
            if is_outage(error):
                raise SourceUnreachableError.at(name, error) from error
            raise BadImageError(f"{name}: its shard cannot be read ({error.strerror})") from error
        return Encoded(content, self._label(index), name)

    def _place(self, index: int) -> tuple[int, int]:
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - (int(self._ends[shard - 1]) if shard else 0)

    def _label(self, index: int) -> Label:
        if self.multi_label:
            return self._labels.of(index) if self._labels.known[index] else None
        label = int(self._labels[index])
        return label if label >= 0 else None


def shards_of(source: str) -> list[Path]:
    """The tar files that a file's name, a pattern with {000..009} or a folder stands for; none: no shards."""
    path = Path(source)
    if path.is_dir():
        return files_ending(path, ".tar")
    return [Path(name) for name in expanded(source)] if path.suffix.lower() == ".tar" else []


def open_shards(shards: list[Path], *, name: str, split: str | None, label: str | None, **options: Any) -> ImageSource:
    """Open one split of these shards; `ValueError` where one is missing or cannot be read."""
    for shard in shards:
        if not shard.is_file():
            raise ValueError(f"there is no shard {shard}; correct the numbers in {name}")
    chosen, files = choose_split(by_split([shard.as_posix() for shard in shards]), split, name)
    return ShardSource([Path(file) for file in files], name=name, split=chosen, label=label, **options)


def _label_values(shards: list[Path], indices: list[ShardIndex], name: str, label: str | None) -> list[Any]:
    """What the label files hold for each sample: a number, text, a list, or None."""
    values: list[Any] = []
    seen: set[str] = set()
    for shard, index in zip(shards, indices, strict=True):
        for place in range(len(index)):
            text, entries = index.cls[place], index.json[place]
            if label is None and text:
                values.append(_number_or_text(text))
            elif entries:
                read = _read(entries, f"{shard.name}/{index.names[place]}")
                seen |= read.keys()
                values.append(_entry(read, label, f"{shard.name}/{index.names[place]}"))
            else:
                values.append(None)
    if label is not None and label not in seen:
        raise ValueError(
            f"no .json file of {name} has an entry {label!r}; they have {', '.join(sorted(seen)) or 'none'}"
        )
    return values


def _read(text: str, name: str) -> dict[str, Any]:
    try:
        read = json.loads(text)
    except ValueError as error:
        raise ValueError(f"the .json file beside {name} cannot be read; correct it") from error
    return read if isinstance(read, dict) else {"label": read}


def _entry(entries: dict[str, Any], label: str | None, name: str) -> Any:
    wanted = [label] if label is not None else [column for column in LABEL_COLUMNS if column in entries]
    value = entries.get(wanted[0]) if wanted else None
    if any(each is not None and not isinstance(each, int | str) for each in _as_list(value) or ()):
        raise ValueError(
            f"the label of {name} is {json.dumps(value)[:80]}; write a whole number, text or a list of them into"
            " its .json file"
        )
    return value


def _number_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _as_list(value: Any) -> Any:
    return value if value is None or isinstance(value, list) else [value]


def _columns(values: list[Any], name: str, classes: list[str] | None, lists: bool) -> Columns:
    """Numbers are indices, into classes.txt where there is one; texts are names."""
    single = {each for value in values for each in (_as_list(value) or ()) if each is not None}
    numbers = [value for value in single if isinstance(value, int)]
    if len(numbers) != len(single):
        texts = {str(value) for value in single}
        if numbers or any(not isinstance(value, str) for value in single):
            raise ValueError(f"the labels of {name} are partly numbers and partly text; write all of them as one kind")
        if classes is not None and not texts <= set(classes):
            raise ValueError(
                f"{name} has the label {min(texts - set(classes))!r}, and {CLASSES} does not; add it there"
            )
        return Columns("", None, classes or sorted(texts), by_value=True, multi_label=lists)
    most = max(numbers, default=-1)
    if classes is not None and most >= len(classes):
        raise ValueError(f"{name} has the label {most}, and {CLASSES} has {len(classes)} lines; add the missing ones")
    return Columns("", None, classes or [str(i) for i in range(most + 1)], by_value=False, multi_label=lists)


def _class_names(shards: Iterable[Path]) -> list[str] | None:
    """The lines of classes.txt beside the shards, or one folder above."""
    folders = {os.path.dirname(shard) or "." for shard in shards}
    for folder in sorted({*folders, *(os.path.dirname(folder) or "." for folder in folders)}, key=len, reverse=True):
        file = Path(folder) / CLASSES
        if file.is_file():
            names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
            name, count = next(iter(Counter(names).most_common(1)), ("", 0))
            if count > 1:
                raise ValueError(f"{file} names the class {name} twice; give each class a name of its own")
            return names
    return None
