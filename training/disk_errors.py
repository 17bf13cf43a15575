"""What a disk refuses while a run writes, told in one sentence."""

import errno
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
    """No space is left. What was being written has been removed; the checkpoints before it are whole."""

    code = 2


@contextmanager
def told(output: Path) -> Iterator[None]:
    """Inside, a full disk raises `DiskFullError`, and a folder that cannot be written to `TrainingRefusedError`.

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
        if number in _FORBIDDEN:
            place = getattr(error, "filename", None) or output
            reason = str(getattr(error, "strerror", error)).lower()
            raise TrainingRefusedError(f"{place} cannot be written: {reason}; pass --set output_dir=ANOTHER") from error
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


def _is_full(output: Path) -> bool:
    return _free(output) < _LEFT


def _free(output: Path) -> int:
    place = next(each for each in (output, *output.absolute().parents) if each.exists())
    return shutil.disk_usage(place).free
