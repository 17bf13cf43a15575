"""What a disk refuses while safetensors writes, as the `OSError` that everything else raises."""

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_LEFT = 2**20  # bytes: where less is free and a write failed without saying why, it is this


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
        if number is None and _is_full(Path(path)):
            number = errno.ENOSPC
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def disk_errno(error: Exception) -> int | None:
    """The errno in what a `SafetensorError` says; None where it says nothing of the disk."""
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def _is_full(path: Path) -> bool:
    place = next(each for each in path.absolute().parents if each.exists())
    return shutil.disk_usage(place).free < _LEFT
