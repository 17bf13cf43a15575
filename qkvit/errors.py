"""What a user can put right, told in one sentence."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

# What the machine refuses, rather than the program: `cli.main` tells it.
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})


class UserError(Exception):
    """A command cannot do what it was asked; the message says why and what to do. Exit code 2, no traceback."""


@contextmanager
def sentences(beginning: str = "", *, also: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Raise what others say of a user's mistakes as a `UserError` of one sentence.

    Args:
        beginning: Stands before it, such as the name of what is loaded.
        also: What else to take for a user's mistake, beside `ValueError`, `OSError` and damaged safetensors files.

    Raises:
        UserError: the first line of the error.
        OSError: the machine refused (`REFUSALS`), also where safetensors says it in an error of its own.

    Example:

    ```python
    >>> with sentences("photos cannot be read: "):
    ...     raise ValueError("there are none.\\nTry others")
    Traceback (most recent call last):
    ...
    qkvit.errors.UserError: photos cannot be read: there are none

    ```
    """
    from safetensors import SafetensorError

    theirs: tuple[type[Exception], ...] = (ValueError, OSError, SafetensorError, *also)
    try:
        yield
    except theirs as error:
        if isinstance(error, OSError) and error.errno in REFUSALS:
            raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        said = lines[0].strip().rstrip(".:")
        if isinstance(error, SafetensorError):  # it names neither the file nor a way out
            from .configuration.disk_errors import disk_errno

            number = disk_errno(error)
            if number in REFUSALS:
                raise OSError(number, os.strerror(number)) from error
            said = f"a file of weights is damaged or cut short ({said}); copy or download it again"
        raise UserError(beginning + said) from error
