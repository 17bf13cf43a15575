"""What a disk refuses while a run reads and writes, told in one sentence."""

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..configuration.disk_errors import belongs_to, disk_errno, free_bytes, is_full, place_of
from .checkpoints import ASIDE, checkpoints
from .errors import TrainingRefusedError, TrainingStoppedError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR)


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
        number = disk_errno(error)
        reason = str(getattr(error, "strerror", None) or error).lower()
        place = place_of(error, output)
        if number in _FORBIDDEN and belongs_to(output, place):
            raise TrainingRefusedError(f"{place} cannot be written: {reason}; pass --set output_dir=ANOTHER") from error
        if number in _FORBIDDEN:
            way = "allow it, or name another place: data.source of the recipe, or HF_HOME for caches"
            raise TrainingRefusedError(f"{place} cannot be read or written: {reason}; {way}") from error
        if number in _FULL and not belongs_to(output, place):
            way = "free some and go on with --resume, or set HF_HOME to a place with more if it is a cache"
            raise DiskFullError(f"{place} cannot be read or written: {reason}; {way}") from error
        if number in _FULL or (not isinstance(error, (ValueError, TypeError)) and is_full(output)):
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
    needed, free = sum(memory[name] for name in ("weights", "optimizer", "average")), free_bytes(output)
    if free < needed:
        raise TrainingRefusedError(
            f"a checkpoint takes about {needed / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free for {output}; free some,"
            " or pass --set output_dir=ANOTHER"
        )
