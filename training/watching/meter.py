"""What a run does, in numbers: accuracy, images a second, waiting for data, operations, memory.

They go to the log with the loss, and so to the progress line, to TensorBoard and to trackio.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import TrainerCallback

from .machine_rate import matrix_product_rate


class Meter(TrainerCallback):
    """Counts while a model is trained, and says what there was since it was last asked.

    Time is that of the steps and of waiting for their data; evaluation and saving do not count.

    Args:
        flops: Floating-point operations of an image, forward and backward.

    Example:

    ```python
    >>> meter = Meter()
    >>> meter.count(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    >>> meter.images, meter.numbers()["accuracy"]
    (2, 0.5)

    ```
    """

    def __init__(self, flops: int = 0) -> None:
        self.flops = flops
        self.images = 0  # of this process, since it started
        self.rate = 0.0  # operations a second of a product of matrices
        self._right: Any = 0  # stays on the device: looking at it would make each step wait
        self._waited = self._busy = 0.0  # seconds
        self._begun: float | None = None
        self._taken = (0, 0.0, 0.0)  # images, seconds waited and busy, at the last look

    # ---- counting

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The time inside is spent waiting for data."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._waited += time.perf_counter() - start

    @torch.no_grad()
    def count(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """A micro-batch was trained on.

        An image counts as right where the highest logit is a label that no other has a greater share in its target:
        where images are mixed, the heavier of the two (either, where both count as present).

        Args:
            logits: (B, K).
            targets: Labels (B,), or shares (B, K).
        """
        best = logits.argmax(-1)
        if targets.is_floating_point():
            share = targets.gather(1, best.unsqueeze(1)).squeeze(1)
            right = (share == targets.amax(1)) & (share > 0)  # an image may have no label at all
        else:
            right = best == targets
        self._right = self._right + right.sum()
        self.images += len(logits)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        dtype = torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else torch.float32
        self.rate = matrix_product_rate(args.device, dtype) if self.flops else 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._begun = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._begun is not None:
            self._busy += time.perf_counter() - self._begun
            self._begun = None

    # ---- telling

    def numbers(self, device: Any = "cpu", world: int = 1) -> dict[str, float]:
        """Since the last call, over all processes; every process has to ask.

        Returns:
            accuracy: of training images as they were augmented, by the weights of the time. images_per_second.
            waiting_for_data: share of the time. flops_per_second. utilisation: share of the rate that a product of
            square matrices reaches on this machine. memory_gib: of one process; on a CPU what is resident, on a GPU the
            allocated peak. What is not known is left out.
        """
        now = (self.images, self._waited, self._busy)
        images, waited, busy = (value - before for value, before in zip(now, self._taken, strict=True))
        self._taken = now
        right, self._right = self._right, 0
        sums = torch.tensor([float(right), images, waited, busy], dtype=torch.float32, device=device)
        if world > 1:
            torch.distributed.all_reduce(sums)
        right, images, waited, busy = sums.tolist()
        if not images:
            return {}
        found = {"accuracy": right / images}
        seconds = (waited + busy) / world
        if seconds > 0:
            rate = images / seconds
            found |= {"images_per_second": rate, "waiting_for_data": waited / (waited + busy)}
            if self.flops:
                found["flops_per_second"] = rate * self.flops
            if self.flops and self.rate:
                found["utilisation"] = rate * self.flops / (self.rate * world)
        found["memory_gib"] = _memory(torch.device(device)) / 2**30
        return {name: float(f"{value:.4g}") for name, value in found.items()}


def _memory(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import psutil  # accelerate needs it, so it is there

    return psutil.Process().memory_info().rss
