"""A folder of class folders, or a folder of images."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from .image_source import Encoded, ImageSource
from .splits import SPLIT_NAMES, canonical, meant

_JPEG = (".jfif", ".jpe", ".jpeg", ".jpg")
EXTENSIONS = frozenset((*_JPEG, ".avif", ".bmp", ".gif", ".jp2", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_NEVER_IMAGES = frozenset(("desktop.ini", "license", "readme", "thumbs.db"))  # also with another ending


class FolderSource(ImageSource):
    """Images in a folder, in the order of their names.

    Each sub-folder with images, however deep, is a class of its own name, in alphabetical order; images that lie in
    the folder itself have no label. Links to folders are followed. Hidden files and files without an image's extension
    are passed over; how many of the latter is in `passed_over`.
    """

    naming_classes = "make a folder for each class, if need be an empty one"
    naming_images = "the name of an image ends in .jpg, .png and the like"

    def __init__(self, folder: Path, *, name: str, split: str | None = None, **options: Any) -> None:
        split = _split_of_folder(folder, name, split)
        self._folder = folder = folder if split is None else folder / split
        classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
        below = {of_class: list(_files_below(folder / of_class, of_class)) for of_class in classes}
        found = {of_class: sorted(filter(_is_image, files)) for of_class, files in below.items()}
        beside = [entry.name for entry in os.scandir(folder) if not entry.is_dir() and not _hidden(entry.name)]
        direct = sorted(filter(_is_image, beside))
        if direct and any(found.values()):
            raise ValueError(
                f"{name} holds both images and folders with images; put each image into the folder of its class, or"
                " all of them into one folder"
            )
        if not direct and not any(found.values()):
            raise ValueError(
                f"{name} holds no images; pass a folder of images or of class folders (files ending in .jpg, .png, ...)"
            )
        super().__init__(name, split=split, class_names=None if direct else tuple(classes), **options)
        self._paths = PackedStrings(direct or [path for paths in found.values() for path in paths])
        # Beside class folders lie files about the data set, such as lists.
        files = chain(beside if direct else (), *below.values())
        self.passed_over = endings_of(name for name in files if not _is_image(name) and not _never_an_image(name))
        counts = [len(paths) for paths in found.values()]
        self._labels = (
            np.full(len(direct), -1, dtype=np.int64) if direct else np.repeat(np.arange(len(classes)), counts)
        )

    def __len__(self) -> int:
        return len(self._paths)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        return self._labels

    def name_of(self, index: int) -> str:
        return self._paths[index]

    def stored_sizes(self) -> np.ndarray[Any, Any]:
        return np.fromiter(
            (_size_of(self._folder / self.name_of(index)) for index in range(len(self))),
            dtype=np.int64,
            count=len(self),
        )

    def encoded(self, index: int) -> Encoded:
        path, label = self._paths[index], int(self._labels[index])
        return Encoded(self._folder / path, label if label >= 0 else None, path)


def split_folders(folder: Path) -> list[str]:
    """The folders for a split each, in order; none where such a name is a class among others."""
    inside = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not _hidden(entry.name))
    splits = [name for name in inside if name.lower() in SPLIT_NAMES]
    if len(splits) != 1:
        return splits
    has_classes = bool(next(os.walk(folder / splits[0]))[1])
    return splits if inside == splits and has_classes else []


def _split_of_folder(folder: Path, name: str, split: str | None) -> str | None:
    """The folder to open: the one that is asked for, or the only one; `None` where the images are in no such folder."""
    inside = split_folders(folder)
    if split is None:
        if len(inside) > 1:
            raise ValueError(f"{name} has the splits {', '.join(inside)}; pass one of them as split")
        return next(iter(inside), None)
    for wanted in (split, *(each for each in inside if canonical(each) == canonical(split))):
        if (folder / wanted).is_dir():
            return wanted
    has = f"its folders of that kind are {', '.join(inside)}" if inside else "it has no such folders"
    raise ValueError(f"{name} has no split {split!r}; {has}{meant(split, inside)}")


def endings_of(names: Iterable[str]) -> Counter[str]:
    """How many of the names have each ending, in small letters.

    Example:

    ```python
    >>> dict(endings_of(["a.heic", "cat/b.HEIC", "c"]))
    {'.heic': 2, '': 1}

    ```
    """
    return Counter(os.path.splitext(name)[1].lower() for name in names)


def _files_below(folder: Path, prefix: str) -> Iterator[str]:
    """Those that are not hidden; a folder that is reached again through a link counts once, one above never."""
    above = folder.parent.resolve()
    seen = {above, *above.parents}
    for parent, folders, files in os.walk(folder, followlinks=True):
        real = Path(parent).resolve()
        folders[:] = [] if real in seen else sorted(name for name in folders if not _hidden(name))
        if real in seen:
            continue
        seen.add(real)
        below = Path(parent).relative_to(folder).as_posix()
        stem = prefix if below == "." else f"{prefix}/{below}"
        yield from (f"{stem}/{name}" for name in files if not _hidden(name))


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in EXTENSIONS


def _never_an_image(name: str) -> bool:
    file = os.path.basename(name).lower()
    return file in _NEVER_IMAGES or os.path.splitext(file)[0] in _NEVER_IMAGES


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _hidden(name: str) -> bool:
    return name.startswith(".")


class PackedStrings:
    """Many strings in one array: a list of them would be copied into every worker as it is read."""

    def __init__(self, strings: Iterable[str]) -> None:
        encoded = [os.fsencode(string) for string in strings]
        self.bytes = np.frombuffer(b"".join(encoded), dtype=np.uint8)
        self.ends = np.cumsum([len(string) for string in encoded], dtype=np.int64)

    @classmethod
    def joined(cls, content: np.ndarray[Any, Any], ends: np.ndarray[Any, Any]) -> "PackedStrings":
        """From its two arrays."""
        made = cls(())
        made.bytes, made.ends = content, ends
        return made

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = int(self.ends[index - 1]) if index else 0
        return os.fsdecode(self.bytes[start : int(self.ends[index])].tobytes())
