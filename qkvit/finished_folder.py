"""A folder that appears only when all of it is there: a run that was stopped leaves nothing that looks finished."""

import itertools
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def check_target(folder: Path, *, marker: str, force: bool, what: str) -> None:
    """Refuse a folder that may not be written, before any work is done.

    An empty folder may be used. A folder whose `marker` names the command `what` is the result of an earlier run, and
    `force` replaces it; anything else is somebody's own and is never touched.

    Args:
        folder: Where the result is to be.
        marker: Name of a JSON file that every finished result holds; its "command" is the one that made it.
        force: Whether an earlier result may be replaced.
        what: The command, for the message.

    Raises:
        UserError: with what to do instead.
    """
    folder = folder.absolute()
    if folder.is_dir():
        if _made_by(what, folder / marker):
            if not force:
                by_make = ' (with make: ARGS="--force")' if "MAKELEVEL" in os.environ else ""
                raise UserError(
                    f"{folder} holds the result of an earlier {what}; pass --force to replace it, or --output for"
                    f" another folder{by_make}"
                )
        elif any(folder.iterdir()):
            raise UserError(
                f"{folder} holds other things and no {marker} of an earlier {what}; pass --output for another folder"
            )
    elif folder.exists() or folder.is_symlink():
        raise UserError(f"{folder} is not a folder; pass --output for another place")


def _made_by(what: str, marker: Path) -> bool:
    try:
        return f"{json.loads(marker.read_text(encoding='utf-8'))['command']} ".startswith(f"{what} ")
    except (OSError, ValueError, KeyError, TypeError):
        return False


def check_writable(folder: Path) -> None:
    """Refuse a place where no result can be written, before a long work.

    Raises:
        UserError: nothing can be written there.
    """
    _scratch(folder.resolve()).rmdir()


def _scratch(folder: Path) -> Path:
    from .modeling.whole_folder import scratch_beside  # modeling loads torch

    try:
        return scratch_beside(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); pass --output for another place") from error


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to write in, and put it in its place at the end.

    If the block raises, what it wrote is removed and `folder` is as it was. What stood in its place is removed last.
    What came there while the block ran is another's: it stays, and the result gets a number behind its name.

    Raises:
        UserError: nothing can be written there, or another process has; it says where the result is.

    Example:

    ```python
    >>> with finished_folder(Path("result")) as part:
    ...     _ = (part / "a.txt").write_text("done")
    ...     Path("result").exists()
    False
    >>> Path("result/a.txt").read_text()
    'done'

    ```
    """
    from .modeling.whole_folder import swapped_in  # modeling loads torch

    folder = folder.resolve()
    scratch, before = _scratch(folder), _state_of(folder)
    with swapped_in(scratch, folder) as part:
        yield part
        if _state_of(folder) not in (before, None):
            numbered = (folder.with_name(f"{folder.name}-{number}") for number in itertools.count(2))
            free = next(place for place in numbered if not place.exists())
            part.rename(free)
            raise UserError(
                f"{folder} was written by another process meanwhile and is left so; this result is in {free}"
            )


def _state_of(folder: Path) -> tuple[int, int] | None:
    """Another one where another folder stands there, or has other files."""
    return (folder.stat().st_ino, folder.stat().st_mtime_ns) if folder.exists() else None
