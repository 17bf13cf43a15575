"""The loader of training and of evaluation: its processes outlast a request to stop, and end when they are told to."""

import weakref
from typing import Any

from torch.utils.data import DataLoader

from ..watching.stops import end_workers_at_exit, outlast_a_request


class Loader(DataLoader[Any]):
    """A DataLoader whose processes end at `close`, whoever still holds an iterator: the frames of an error do.

    Left to the garbage collector, each of them is waited for ten seconds: it is asked to end through queues that are
    collected with it.

    Example:

    ```python
    >>> from contextlib import closing
    >>> with closing(Loader(range(4), batch_size=2, num_workers=1)) as loader:
    ...     next(iter(loader)).tolist()
    [0, 1]

    ```
    """

    def __init__(self, images: Any, **options: Any) -> None:
        super().__init__(images, worker_init_fn=outlast_a_request, **options)
        self._newest: Any = None
        if self.num_workers:
            end_workers_at_exit()

    def __iter__(self) -> Any:
        iterator = super().__iter__()
        self._newest = weakref.ref(iterator)
        return iterator

    def close(self) -> None:
        """End the processes of the newest iteration; a new one begins anew."""
        iterator = self._newest and self._newest()
        if iterator is not None and self.num_workers:
            iterator._shutdown_workers()
        self._iterator = None  # of persistent ones
