"""Products of matrices in the data type of their factors."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

# By the kind of device. They follow torch.set_float32_matmul_precision too, which can be read only where these agree.
_BACKENDS: Any = torch.backends  # whose settings no type checker knows
_SETTINGS: dict[str, Any] = {"cpu": _BACKENDS.mkldnn.matmul, "cuda": _BACKENDS.cuda.matmul}
_FULL = ("ieee", "none")

_lock = threading.Lock()
_inside = dict.fromkeys(_SETTINGS, 0)
_before: dict[str, str] = {}


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """No autocast, and no TF32 or bfloat16 inside a float32 product, whatever the process has chosen for its own.

    The choice is the process's and not the thread's: it returns when the last thread leaves.
    """
    kind = device.type
    _enter(kind)
    try:
        with torch.autocast(kind, enabled=False):
            yield
    finally:
        _leave(kind)


def _enter(kind: str) -> None:
    if kind not in _SETTINGS:
        return
    with _lock:
        _inside[kind] += 1
        if _inside[kind] == 1 and _SETTINGS[kind].fp32_precision not in _FULL:
            _before[kind] = _SETTINGS[kind].fp32_precision
            _SETTINGS[kind].fp32_precision = "ieee"


def _leave(kind: str) -> None:
    if kind not in _SETTINGS:
        return
    with _lock:
        _inside[kind] -= 1
        if _inside[kind] == 0 and kind in _before:
            before = _before.pop(kind)
            _SETTINGS[kind].fp32_precision = "none"  # what torch.backends.fp32_precision says, now and later
            if _SETTINGS[kind].fp32_precision != before:
                _SETTINGS[kind].fp32_precision = before
