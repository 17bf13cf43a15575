"""Q, K and V as three matrix products, as one of weights joined on the spot, and as one of weights joined before.

    python benchmarks/qkv_projection.py

Microseconds of one layer's projections at 197 tokens: the smallest and the median of many calls, in turn.
"""

import platform
import time
from collections.abc import Callable

import torch
from torch import nn

TOKENS = 197


def in_turn(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Sorted microseconds of each call."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 5):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn >= 5:  # the first ones warm up
                times[name].append(1e6 * (time.perf_counter() - start))
    return {name: sorted(values) for name, values in times.items()}


@torch.no_grad()
def compare(width: int, batch: int, dtype: torch.dtype) -> str:
    """One line of the table."""
    tokens = torch.randn(batch, TOKENS, width, dtype=dtype)
    layers = [nn.Linear(width, width, dtype=dtype) for _ in range(3)]

    def joined() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    weight, bias = joined()
    times = in_turn(
        {
            "three products": lambda: [layer(tokens) for layer in layers],
            "join, then one": lambda: nn.functional.linear(tokens, *joined()),
            "one, already joined": lambda: nn.functional.linear(tokens, weight, bias),
        },
        rounds=300 if batch == 1 else 60,
    )
    shown = "  ".join(f"{name} {values[0]:7.0f} {values[len(values) // 2]:7.0f}" for name, values in times.items())
    return f"{width:4} batch {batch} {str(dtype).removeprefix('torch.'):9} {shown}"


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.processor() or platform.machine()}")
    for dtype in (torch.float32, torch.bfloat16):
        for batch in (1, 8):
            for width in (192, 384, 768):
                print(compare(width, batch, dtype), flush=True)
