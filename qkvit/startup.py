"""The command's first seconds: --help without loading torch, and ctrl-C that ends them without a traceback."""

import multiprocessing
import os
import signal
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any


def is_command() -> bool:
    """Whether this process was started as `qkvit` or `python -m qkvit`, which load torch when they need it.

    A process that multiprocessing starts for it has its arguments, and is none.
    """
    if multiprocessing.parent_process() is not None:
        return False
    words = sys.orig_argv
    if sys.argv[:1] == ["-m"]:  # so while the package of the module is imported
        return ("-m", "qkvit") in pairwise(words)
    return Path(sys.argv[0] if sys.argv else "").stem == "qkvit"


def stop_at_once() -> None:
    """Until `load_models`, ctrl-C ends the process: in the middle of an import it would be a traceback, or lost."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # nobody's own, and not ignored
        signal.signal(signal.SIGINT, _end)


def load_models() -> None:
    """Load torch and transformers, make the Auto classes know QKViT, and let ctrl-C raise from here on."""
    from .registration import register

    register()
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: Any) -> None:
    os.write(2, b"\nstopped\n")
    os._exit(128 + number)
