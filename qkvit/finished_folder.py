"""A folder that appears only when all of it is there: a run that was stopped leaves nothing that looks finished."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError


def check_target(folder: Path, *, marker: str, force: bool, what: str) -> None:
    """Refuse a folder that may not be written, before any work is done.

    An empty folder may be used. A folder that holds the file `marker` is the result of an earlier run, and `force`
    replaces it; anything else is somebody's own and is never touched.

    Args:
        folder: Where the result is to be.
        marker: Name of a file that every finished result holds.
        force: Whether an earlier result may be replaced.
        what: The command, for the message.

    Raises:
        UserError: with what to do instead.
    """
    folder = folder.absolute()
    if folder.is_dir():
        if (folder / marker).is_file():
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


@contextmanager
def finished_folder(folder: Path) -> Iterator[Path]:
    """Give a new folder beside `folder` to write in, and put it in its place at the end.

    If the block raises, what it wrote is removed and `folder` is as it was. What stood in its place is removed last.

    Raises:
        UserError: nothing can be written there.

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
    from .modeling.whole_folder import scratch_beside, swapped_in  # modeling loads torch

    folder = folder.resolve()
    try:
        scratch = scratch_beside(folder)
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror}); pass --output for another place") from error
    with swapped_in(scratch, folder) as part:
        yield part
