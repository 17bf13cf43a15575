"""How many processes there are, and whether they are as many as were asked for."""

import os
import sys
from pathlib import Path
from typing import Any

from .errors import TrainingRefusedError


def rank() -> int:
    """Number of this process as the launcher says it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def check_world(asked: int | None, real: int, gpus: int = 1, recipe: str = "RECIPE.yaml") -> None:
    """Refuse a number of processes that nobody asked for.

    `accelerate launch --cpu --num_processes 2` starts one process; torchrun without a backend that fits gives several
    runs of one process each: both do it without a word.

    Args:
        asked: By the recipe.
        real: In the process group.
        gpus: That this process would use, as DataParallel.

    Raises:
        TrainingRefusedError: with the command to use.

    Example:

    ```python
    >>> check_world(asked=2, real=1)
    Traceback (most recent call last):
    ...
    qkvit.training.errors.TrainingRefusedError: 2 processes are asked for and 1 is running: start with torchrun ...

    ```
    """
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    wanted = asked if asked is not None else launched
    if wanted != real or launched != real:
        count = wanted if wanted != real else launched
        running = f"{real} is" if real == 1 else f"{real} are"
        raise TrainingRefusedError(
            f"{count} processes are asked for and {running} running: start with {command(wanted, recipe)}"
        )
    if gpus > 1:
        raise TrainingRefusedError(
            f"one process would use {gpus} GPUs by DataParallel: start with {command(gpus, recipe)}, or set"
            " CUDA_VISIBLE_DEVICES=0"
        )


def command(processes: int, recipe: str) -> str:
    """How to start so many."""
    if processes == 1:
        return f"{Path(sys.executable).name} -m qkvit.training.train {recipe}"
    return f"torchrun --nproc_per_node {processes} -m qkvit.training.train {recipe}"


def device_arguments(values: dict[str, Any]) -> dict[str, Any]:
    """`use_cpu` where there is no accelerator: without it, several processes would not find each other."""
    import torch

    if "use_cpu" in values or torch.accelerator.is_available():
        return {}
    return {"use_cpu": True}
