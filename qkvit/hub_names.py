"""Names that may be a mistyped path or an id on the Hub: what is looked for where is said before it is waited for."""

import difflib
import sys
from pathlib import Path


def say_if_on_hub(name: str) -> None:
    """Say that a name is looked for on the Hub, where it looks like a path: the folder that it would be in is here.

    Example:

    ```python
    >>> Path("runs/digits").mkdir(parents=True)
    >>> say_if_on_hub("runs/digits")  # is here
    >>> say_if_on_hub("someone/digits")  # could only be on the Hub

    ```
    """
    path = Path(name)
    if "://" in name or path.exists() or path.parent == Path(".") or not path.parent.is_dir():
        return
    inside = [entry.name for entry in path.parent.iterdir()]
    near = difflib.get_close_matches(path.name, inside, n=1)
    meant = f" (did you mean {path.parent / near[0]}?)" if near else ""
    print(f"There is no {name} here{meant}; looking for it on the Hub.", file=sys.stderr, flush=True)
