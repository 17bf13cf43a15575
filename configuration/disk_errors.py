"""What a disk refuses: as the `OSError` that everything raises but safetensors, and where it is."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFT = 2**20  # bytes: where less is free and a write failed without saying why (torch.save does), it is this


@contextmanager
def as_os_errors(path: str | Path) -> Iterator[None]:
    """Inside, where `path` is written, a `SafetensorError` that the disk is to blame for is raised as `OSError`.

    Raises:
        OSError: the disk refused, with its errno (`ENOSPC` where it is full) and the path.

    Example:

    ```python
    >>> from safetensors import SafetensorError
    >>> with as_os_errors("vectors.safetensors"):
    ...     raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    Traceback (most recent call last):
    ...
    OSError: [Errno 28] No space left on device: 'vectors.safetensors'

    ```
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = disk_errno(error)
        if number is None and is_full(path):
            number = errno.ENOSPC
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_errno(error: Exception) -> int | None:
    """The errno of an `OSError`, or in what a `SafetensorError` says; None where it says nothing of the disk."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def free_bytes(path: str | Path) -> int:
    """Of the disk that holds a path, or would."""
    return shutil.disk_usage(_what_there_is(path)).free


def is_full(path: str | Path) -> bool:
    """Whether so little is free that a write fails."""
    return free_bytes(path) < _LEFT


def place_of(error: Exception, otherwise: Path) -> Path:
    """The file that an error names; `otherwise` where it names none, as errors of writing do."""
    name = getattr(error, "filename", None)  # or the number of an open file
    return Path(os.fsdecode(name)) if name and isinstance(name, (str, bytes, os.PathLike)) else otherwise


def on_one_disk(first: str | Path, second: str | Path) -> bool:
    """Whether two paths are on the same file system, or would be."""
    return _what_there_is(first).stat().st_dev == _what_there_is(second).stat().st_dev


def _what_there_is(path: str | Path) -> Path:
    place = Path(path).absolute()
    return next(each for each in (place, *place.parents) if each.exists())


def belongs_to(folder: Path, place: Path) -> bool:
    """Whether a place is the folder, lies in it, or is a folder above it that could not be made."""
    ours, theirs = Path(os.path.realpath(folder)), Path(os.path.realpath(place))
    return theirs.is_relative_to(ours) or (ours.is_relative_to(theirs) and not os.path.exists(theirs))
