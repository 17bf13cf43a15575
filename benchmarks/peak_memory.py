"""How much memory a step takes, and how that grows: for the other scripts here, and for the tests of memory."""

import math
import resource
from collections.abc import Callable
from pathlib import Path

import torch


def device_peak(step: Callable[[], None]) -> int:
    """The most that torch holds on the GPU at once during a step, beyond what it held before."""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def peak_bytes(step: Callable[[], object]) -> int:
    """The most that torch holds on the CPU at once during a step, beyond what it held before."""
    # Not torch.profiler: it makes a tree of all events first, which takes ten times as long as many a step.
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        step()
    assert profile.kineto_results is not None
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def resident_bytes() -> float:
    """The most that this process has had in memory; Linux's `ru_maxrss` begins at that of the process before it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return 1024.0 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return 1024.0 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def exponent(sizes: list[int], amounts: list[float]) -> float:
    """The slope of log(amount) against log(size), least squares."""
    x, y = [math.log(size) for size in sizes], [math.log(amount) for amount in amounts]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
