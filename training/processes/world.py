"""How many processes there are, and whether they are as many as were asked for."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from ..errors import TrainingRefusedError

LAUNCHER_FILES = Path(__file__).parent.parent / "accelerate"  # for accelerate launch --config_file


# How many processes a cluster's own starters (srun, mpirun) have started: they do not make torch's process group.
_TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


def rank() -> int:
    """Number of this process as the launcher says it; 0 without one."""
    return int(os.environ.get("RANK", "0"))


def processes() -> int:
    """How many processes the launcher says that it starts; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def in_any_process(here: bool, device: Any, world: int) -> bool:
    """Whether it is so in any of the processes, which have all come here."""
    if world == 1:
        return here
    import torch

    flag = torch.tensor(float(here), device=device)
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    return bool(flag.item())


def barrier(world: int) -> None:
    """Wait until all processes have come here."""
    if world > 1:
        import torch

        torch.distributed.barrier()


def of_the_first_process(here: Any, world: int) -> Any:
    """What the first process has here; every process has to ask."""
    if world == 1:
        return here
    import torch

    box = [here]
    torch.distributed.broadcast_object_list(box, src=0)
    return box[0]


def check_world(asked: int | None, real: int, gpus: int = 1, recipe: str = "RECIPE.yaml") -> None:
    """Refuse a number of processes that nobody asked for.

    `accelerate launch --cpu --num_processes 2` starts one process; torchrun without a backend that fits, and srun, give
    several runs of one process each: all of them without a word.

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
    if accelerate_started_one():
        count = asked if asked is not None and asked > 1 else "N"
        raise TrainingRefusedError(
            "accelerate launch was asked for several processes and starts one without a GPU: start with"
            f" {command(count, recipe)}, or with --num_processes 1 and without MASTER_ADDR in the environment"
        )
    if "WORLD_SIZE" not in os.environ and real == 1:
        alone = max([int(os.environ[name]) for name in _TASKS if os.environ.get(name, "").isdigit()], default=1)
        if alone > 1:
            raise TrainingRefusedError(
                f"{alone} processes were started without a launcher, and each would train by itself: start with"
                f" {command('N', recipe)}, one on each machine"
            )
    launched = processes()
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


def accelerate_started_one() -> bool:
    """Whether this is the one process of an `accelerate launch --cpu` for more of them.

    Their number does not reach this process. But accelerate sets the address of a process group for more than one
    alone, and of the group's processes it says nothing. An address that a cluster has set looks the same.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    return launched and not {"RANK", "LOCAL_RANK", "WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE"} & os.environ.keys()


_left_behind: set[str] = set()


@contextmanager
def as_launched(values: dict[str, Any]) -> Iterator[None]:
    """Inside, `TrainingArguments` may be made: the environment says what the launcher asks for, and nothing else.

    transformers writes compilation into the environment and leaves it there: the next run in this process would be
    compiled too.

    Args:
        values: The recipe's `arguments`.

    Raises:
        TrainingRefusedError: the launcher asks for precision or compilation, and the recipe does not: no record of the
            run would show it.
    """
    for name in _left_behind:
        os.environ.pop(name, None)
    _left_behind.clear()
    _check_launcher(values)
    _join_on_a_cpu(values)
    before = set(os.environ)
    try:
        yield
    finally:
        _left_behind.update(name for name in set(os.environ) - before if name.startswith("ACCELERATE_"))


def _join_on_a_cpu(values: dict[str, Any]) -> None:
    """Make the process group of a CPU with the recipe's `ddp_timeout`; transformers leaves that out there."""
    import torch

    placed = {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys() and processes() > 1
    if placed and values.get("use_cpu") and not torch.distributed.is_initialized():
        patience = timedelta(seconds=values.get("ddp_timeout", 1800))
        torch.distributed.init_process_group("gloo", timeout=patience)


def _check_launcher(values: dict[str, Any]) -> None:
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision != "no" and not values.get(precision):
        way = "" if precision == "fp8" else f"pass --set {precision}=true too, or "
        raise TrainingRefusedError(
            f"the launcher asks for {precision} and the recipe does not: {way}start with --mixed_precision no"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no").lower()
    if compiler != "no" and not values.get("torch_compile"):
        raise TrainingRefusedError(
            f"the launcher asks for compilation by {compiler} and the recipe does not: pass --set torch_compile=true"
            " too, or start with --dynamo_backend no"
        )


def command(processes: int | str, recipe: str) -> str:
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


def end_together() -> None:
    """Give the process group back; at the end of a program torch would complain of one that is left."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
