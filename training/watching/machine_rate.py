"""How fast a machine multiplies matrices: what the operations of a run are a share of."""

import time

import torch

_SECONDS = 0.1  # of measuring, after a first product that is not timed


def matrix_product_rate(device: torch.device | str, dtype: torch.dtype = torch.float32) -> float:
    """Floating-point operations a second of one large product of square matrices, measured, for one process.

    Square products are what a machine does best, so a model reaches a share of this below 1. It is a measured rate and
    not the peak of a data sheet: it takes in the threads, clocks and number type (TF32 too) that the run has. The best
    of several products is taken; no random numbers are drawn.

    Args:
        dtype: What a run computes in: bfloat16 or float16 under autocast.

    Example:

    ```python
    >>> matrix_product_rate("cpu") > 1e7
    True

    ```
    """
    device = torch.device(device)
    size = 512 if device.type == "cpu" else 4096
    numbers = torch.arange(size * size, dtype=torch.float32, device=device).sin().view(size, size).to(dtype)
    numbers @ numbers
    best, end = float("inf"), time.perf_counter() + _SECONDS
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        for _ in range(1 if device.type == "cpu" else 8):
            numbers @ numbers
        _wait(device)
        best = min(best, (time.perf_counter() - start) / (1 if device.type == "cpu" else 8))
    return 2 * size**3 / best


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
