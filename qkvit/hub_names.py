"""Names that may be a mistyped path or an id on the Hub: what is looked for where is said before it is waited for."""

import difflib
import re
import sys
from contextlib import suppress
from pathlib import Path

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)")


def say_if_on_hub(name: str) -> None:
    """Say that a name is looked for on the Hub, where it could be a path too: the folder that it would be in is here.

    Example:

    ```python
    >>> Path("runs/digits").mkdir(parents=True)
    >>> say_if_on_hub("runs/digits")  # is here
    >>> say_if_on_hub("someone/digits")  # could only be on the Hub

    ```
    """
    parts = _HUB_ID.fullmatch(name)
    with suppress(OSError):  # a folder that may not be read
        if parts is None or Path(name).exists() or not Path(parts[1]).is_dir():
            return
        near = difflib.get_close_matches(parts[2], [entry.name for entry in Path(parts[1]).iterdir()], n=1)
        meant = f" (did you mean {parts[1]}/{near[0]}?)" if near else ""
        print(f"There is no {name} here{meant}; looking for it on the Hub.", file=sys.stderr, flush=True)
