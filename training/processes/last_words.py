"""How several processes end when something went wrong: the error is said once, and no process waits for ever.

The first process says its error at once, and the launcher then ends the others. Another process waits a little before
it says its own: by then it has been ended if the first one had the same error. A process that lost the connection to
another one has nothing of its own to say, so it waits too.
"""

import os
import signal
import sys
import time
import traceback
from typing import NoReturn

from .world import processes, rank

PATIENCE = 3.0  # seconds; launchers look at their processes several times a second


def leave(message: str, code: int) -> NoReturn:
    """Exit with one sentence, said by one of the processes."""
    _wait_unless_first()
    if not rank() or code != 128 + signal.SIGTERM:  # a launcher that was ended waits for all, who all stop
        print(f"error: {_who()}{message}", file=sys.stderr, flush=True)
    _exit(code)


def leave_broken(error: Exception) -> NoReturn:
    """Exit after an error that is not the user's, with its traceback from one of the processes."""
    if lost_another(error):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(PATIENCE)
        from ...configuration.reasons import in_one_line  # not above: the command has not loaded torch yet

        reason = in_one_line(error)[:200]
        print(
            f"error: {_who()}stops, because another process is gone or does not answer ({reason})",
            file=sys.stderr,
            flush=True,
        )
    else:
        _wait_unless_first()
        shown = "".join(traceback.format_exception(error))
        print(f"error: {_who()}failed:\n{shown}", file=sys.stderr, flush=True)
    _exit(1)


def lost_another(error: Exception) -> bool:
    """Whether an error only says that the connection to another process is lost or that one did not answer.

    Example:

    ```python
    >>> lost_another(RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:16586"))
    True
    >>> lost_another(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    False

    ```
    """
    from torch.distributed import DistError

    signs = [
        *("closed by peer", "reset by peer", "Broken pipe", "gloo/transport", "NCCL", "ProcessGroup", "recvValue"),
        "killed by signal: Terminated",  # a worker of this process, by a launcher that ends all of them
    ]
    return isinstance(error, DistError) or any(sign in str(error) for sign in signs)


def _wait_unless_first() -> None:
    if rank():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a run catches it; here it means: the first has said it
        time.sleep(PATIENCE)


def _who() -> str:
    return f"process {rank()} of {processes()}: " if rank() else ""


def _exit(code: int) -> NoReturn:
    sys.stdout.flush()
    if processes() > 1:
        os._exit(code)  # an ordinary exit would wait for collective operations that nobody answers any more
    sys.exit(code)
