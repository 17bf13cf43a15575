"""Products of matrices in the data type of their factors."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_BACKENDS: Any = torch.backends  # whose settings no type checker knows
_SETTINGS: tuple[Any, ...] = (_BACKENDS.mkldnn.matmul, _BACKENDS.cuda.matmul)

_lock = threading.Lock()
_inside = 0
_put_back = contextlib.ExitStack()


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32 or bfloat16 inside a float32 product, whatever the process has chosen for its own.

    The choice is the process's and not the thread's: it returns when the last thread leaves.
    """
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            _choose()
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _put_back.close()


def _choose() -> None:
    chosen = _by_one_name()
    if chosen is not None and chosen != "highest":  # which sets those below too, and whatever else goes by it
        _put_back.callback(torch.set_float32_matmul_precision, chosen)
        torch.set_float32_matmul_precision("highest")
    for setting in _SETTINGS:
        before = setting.fp32_precision
        if before not in ("ieee", "none"):
            _put_back.callback(_restore, setting, before)
            setting.fp32_precision = "ieee"


def _by_one_name() -> str | None:
    """What torch.set_float32_matmul_precision was given; `None` where settings are that it has no name for."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _restore(setting: Any, before: str) -> None:
    setting.fp32_precision = "none"  # what torch.backends.fp32_precision says, now and later
    if setting.fp32_precision != before:
        setting.fp32_precision = before
