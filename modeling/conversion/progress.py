"""A progress bar for what takes longer than two seconds."""

import sys
from collections.abc import Iterable, Sequence
from typing import Any

DELAY = 2.0  # seconds


def steps(items: Sequence[Any], what: str, wanted: bool | None = None) -> Iterable[Any]:
    """The items, with a progress bar on standard error: always, never, or (None) from `DELAY` on.

    Example:

    ```python
    >>> list(steps([1, 2, 3], "counting"))
    [1, 2, 3]

    ```
    """
    from tqdm import tqdm

    if wanted is False:
        return items
    return tqdm(items, desc=what, delay=0.0 if wanted else DELAY, leave=False, file=sys.stderr, unit="tensor")
