"""What a disk refuses while a run reads and writes, told in one sentence."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .checkpoints import ASIDE, checkpoints
from .errors import TrainingRefusedError, TrainingStoppedError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)
_LEFT = 2**20  # bytes: torch and safetensors do not say why a write failed; where less is free, it is this


class DiskFullError(TrainingStoppedError):
    """No space is left. A checkpoint that was being written has been removed; those before it are whole."""

    code = 2


@contextmanager
def told(output: Path) -> Iterator[None]:
    """Inside, a full disk raises `DiskFullError`, and what may not be read or written `TrainingRefusedError`.

    An error that names no file is taken for one of writing into the run's folder: writing names none.

    Args:
        output: The folder of the run.

    Example:

    ```python
    >>> with told(Path("run")):
    ...     raise OSError(errno.ENOSPC, "No space left on device")
    Traceback (most recent call last):
    ...
    qkvit.training.disk_errors.DiskFullError: no space is left for run: nothing has been saved yet; free some and ...

    ```
    """
    try:
        yield
    except (TrainingRefusedError, TrainingStoppedError):
        raise
    except Exception as error:  # safetensors has a class of its own
        number = error.errno if isinstance(error, OSError) else None
        reason = str(getattr(error, "strerror", None) or error).lower()
        place = _place(error, output)
        if number in _FORBIDDEN and _is_of(output, place):
            raise TrainingRefusedError(f"{place} cannot be written: {reason}; pass --set output_dir=ANOTHER") from error
        if number in _FORBIDDEN:
            way = "allow it, or name another place: data.source of the recipe, or HF_HOME for caches"
            raise TrainingRefusedError(f"{place} cannot be read or written: {reason}; {way}") from error
        if number in _FULL and not _is_of(output, place):
            way = "free some and go on with --resume, or set HF_HOME to a place with more if it is a cache"
            raise DiskFullError(f"{place} cannot be read or written: {reason}; {way}") from error
        if number in _FULL or (not isinstance(error, (ValueError, TypeError)) and _is_full(output)):
            shutil.rmtree(output / ASIDE, ignore_errors=True)
            found = checkpoints(output)
            kept = f"{found[0].name} is whole" if found else "nothing has been saved yet"
            raise DiskFullError(f"no space is left for {output}: {kept}; free some and go on with --resume") from error
        raise


def check_space(output: Path, memory: dict[str, int]) -> None:
    """Refuse a run whose first checkpoint would not fit.

    Args:
        memory: Bytes by what they are for, of a plan.
    """
    needed, free = sum(memory[name] for name in ("weights", "optimizer", "average")), _free(output)
    if free < needed:
        raise TrainingRefusedError(
            f"a checkpoint takes about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free for {output}; free some,"
            " or pass --set output_dir=ANOTHER"
        )


def _place(error: Exception, output: Path) -> Path:
    name = getattr(error, "filename", None)  # or the number of an open file
    return Path(os.fsdecode(name)) if name and isinstance(name, (str, bytes, os.PathLike)) else output


def _is_of(output: Path, place: Path) -> bool:
    """Whether a place is the run's folder, lies in it, or is a folder above it that could not be made."""
    ours, theirs = Path(os.path.realpath(output)), Path(os.path.realpath(place))
    return theirs.is_relative_to(ours) or (ours.is_relative_to(theirs) and not os.path.exists(theirs))


def _is_full(output: Path) -> bool:
    return _free(output) < _LEFT


def _free(output: Path) -> int:
    place = next(each for each in (output, *output.absolute().parents) if each.exists())
    return shutil.disk_usage(place).free
