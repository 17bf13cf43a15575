"""Fair timing: what is compared takes turns in one process, in an order that is drawn anew for each round."""

import random
import statistics
import time
from collections.abc import Callable

import torch

Step = Callable[[], object]
Clock = Callable[[], float]


def take_turns(
    steps: dict[str, Step],
    budget: float = 0.0,
    at_least: int = 7,
    *,
    device: str = "cpu",
    clock: Clock = time.perf_counter,
    warm_up: int = 3,
) -> dict[str, list[float]]:
    """Seconds of each step in each round; each round has an order of its own, drawn from a fixed seed.

    A step takes longer after one that leaves caches and memory in disorder: none may follow the same one each time.
    Rounds are short and many: what slows the machine for a while slows all steps of a round, and the median of the
    rounds' ratios leaves out those that it hit unevenly.

    Args:
        budget: Seconds of turns: as many rounds as fit, and `at_least` so many.
        clock: `time.process_time` where only the processor's time is of interest.
        warm_up: Calls of each step before the first round.
    """
    repeats = 1
    for step in steps.values():
        for _ in range(warm_up):
            step()
        if device == "cuda":  # long against the cost of waiting for the device
            repeats = max(repeats, round(0.05 / seconds(step, device)))
    times: dict[str, list[float]] = {name: [] for name in steps}
    names, draw = list(steps), random.Random(0)
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[names[0]]) < at_least:
        draw.shuffle(names)
        for name in names:
            times[name].append(seconds(steps[name], device, repeats, clock))
    return times


def seconds(step: Step, device: str = "cpu", repeats: int = 1, clock: Clock = time.perf_counter) -> float:
    """Of one call, until the device has done its work; the mean of `repeats`."""
    synchronize(device)
    start = clock()
    for _ in range(repeats):
        step()
    synchronize(device)
    return (clock() - start) / repeats


def synchronize(device: str) -> None:
    """Wait for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def ratios(over: list[float], under: list[float]) -> list[float]:
    """Quartiles, over the rounds, of one step's time divided by another's in the same round."""
    return quartiles([a / b for a, b in zip(over, under, strict=True)])


def quartiles(values: list[float]) -> list[float]:
    """Lower quartile, median, upper quartile."""
    return statistics.quantiles(values, n=4, method="inclusive")
