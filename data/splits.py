"""Which files of a folder are a data set's, and which part of it each belongs to, told from their names."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import TypeVar

SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}
_KNOWN = frozenset(("train", "validation", "test"))
SPLIT_NAMES = _KNOWN | SPLIT_ALIASES.keys()

T = TypeVar("T")


def files_ending(folder: Path, ending: str) -> list[Path]:
    """The files at any depth below a folder whose names end so, in capitals or not, in order."""
    return sorted(path for path in folder.rglob("*.*") if path.suffix.lower() == ending and path.is_file())


def split_of(file: str) -> str:
    """The split that a file belongs to: its name without the number, or else its folder's.

    Example:

    ```python
    >>> split_of("test-00000-of-00002.parquet"), split_of("val.parquet"), split_of("shards/train/0003.tar")
    ('test', 'validation', 'train')
    >>> split_of("imagenet-train-000012.tar"), split_of("shards/0003.tar")
    ('train', 'shards')
    >>> split_of("TRAIN.PARQUET"), split_of("Val/0003.tar")
    ('train', 'validation')

    ```
    """
    path = PurePosixPath(file)
    stem = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", path.name.partition(".")[0])
    stem = re.sub(r"(^\d+|[-_]\d{3,})$", "", stem)  # fold_1 and fold_2 stay apart
    words = [canonical(word) for word in re.split(r"[-_]", stem)]
    known = [word for word in words if word in _KNOWN]
    if len(known) == 1:
        return known[0]
    name = stem or path.parent.name or "all"
    return canonical(name)


def canonical(split: str) -> str:
    """A split's usual name, e.g. "validation" for "val" and for "Val"."""
    name = SPLIT_ALIASES.get(split.lower(), split.lower())
    return name if name in _KNOWN else split


def by_split(files: Iterable[str]) -> dict[str, list[str]]:
    """Files by the split that they belong to, in their order."""
    splits: dict[str, list[str]] = {}
    for file in files:
        splits.setdefault(split_of(file), []).append(file)
    return splits


def files_of_split(files: list[str], split: str | None, name: str) -> tuple[str, list[str]]:
    """The tables of the split that is asked for, or of the only one.

    Raises:
        ValueError: there is no such split, or its files are two sets, or a part of one. A file that is named itself may
            be a part.

    Example:

    ```python
    >>> files_of_split(["pets/test.parquet", "pets/train.parquet"], "test", "pets")
    ('test', ['pets/test.parquet'])
    >>> files_of_split(["pets/train-00001-of-00002.parquet"], None, "pets")
    Traceback (most recent call last):
    ...
    ValueError: pets holds 1 file train-...-of-00002 and not 2; complete the set, or rename the files to use them alone

    ```
    """
    chosen, files = choose_split(by_split(files), split, name)
    if len(files) > 1 or os.path.basename(files[0]) != os.path.basename(name):
        _refuse_two_sets(files, name)
        _refuse_parts(files, name)
    return chosen, files


def _refuse_two_sets(files: list[str], name: str) -> None:
    folders: dict[str, list[str]] = {}
    for file in files:
        folders.setdefault(os.path.basename(file), []).append(os.path.dirname(file) or ".")
    for file, inside in folders.items():
        if len(inside) > 1 and not _are_pieces(inside):
            raise ValueError(
                f"{name} has a file {file} in {len(inside)} folders, which may be sets of their own; name one of"
                f" {', '.join(inside)}, or rename the files to join them"
            )


def _are_pieces(folders: list[str]) -> bool:
    """Whether these are folders of one set: one for each value of a column, or numbered ones."""
    return all(map(_is_of_a_value, folders)) or len({re.sub(r"\d+", "", folder) for folder in folders}) == 1


def _is_of_a_value(folder: str) -> bool:
    return "=" in os.path.basename(folder)


def _refuse_parts(files: list[str], name: str) -> None:
    sets: dict[tuple[str, str], list[str]] = {}
    for file in files:
        numbered = re.fullmatch(r"(.*)-\d+-of-(\d+)(-[0-9a-f]+)?\.\w+", os.path.basename(file))
        if numbered is not None:
            folder = os.path.dirname(file)
            sets.setdefault((folder if _is_of_a_value(folder) else "", numbered[1]), []).append(numbered[2])
    for (_, stem), wanted in sets.items():
        for count in wanted:
            if int(count) != len(wanted):
                have = "1 file" if len(wanted) == 1 else f"{len(wanted)} files"
                raise ValueError(
                    f"{name} holds {have} {stem}-...-of-{count} and not {int(count)}; complete the set, or rename the"
                    " files to use them alone"
                )


def choose_split(splits: Mapping[str, T], split: str | None, name: str) -> tuple[str, T]:
    """The split that is asked for, or the only one; `ValueError` that lists them where it cannot be told."""
    if split is None:
        if len(splits) > 1:
            raise ValueError(f"{name} has the splits {', '.join(splits)}; pass one of them as split")
        return next(iter(splits.items()))
    for name_here in (split, *(each for each in splits if canonical(each) == canonical(split))):
        if name_here in splits:
            return name_here, splits[name_here]
    raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}{meant(split, splits)}")


def meant(split: str, splits: Iterable[str]) -> str:
    """Which split a mistyped one may be, to end a sentence with.

    Example:

    ```python
    >>> meant("valdation", ["train", "val", "test"]), meant("extra", ["train"])
    ('; did you mean val?', '')

    ```
    """
    names = {alias: name for name in splits for alias in (canonical(name), name)}
    near = difflib.get_close_matches(split, names, n=1, cutoff=0.75)
    return f"; did you mean {names[near[0]]}?" if near else ""
