"""A recipe that takes a second: two layers of width 16 on a few digits."""

import copy
import gc
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qkvit.training import plan, report, train
from qkvit.training.optimisation.weight_average import WeightAverage
from qkvit.training.watching import meter

TINY: dict[str, Any] = {
    "name": "tiny",
    "data": {"source": "digits", "images": 100, "held_out": 0.05},
    "model": {
        "config": {
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 8,
            "patch_size": 2,
            "initializer_range": 0.1,
        }
    },
    "arguments": {
        "max_steps": 9,
        "per_device_train_batch_size": 8,
        "learning_rate": 1e-3,
        "eval_strategy": "no",
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "seed": 5,
    },
}

# Everything that is drawn at random or carried from step to step.
BUSY: dict[str, Any] = {
    "model": {"config": {"hidden_dropout_prob": 0.1, "drop_path_rate": 0.2}},
    "augmentation": {
        "crop": "resized",
        "crop_scale": [0.5, 1.0],
        "flip": 0.5,
        "brightness": 0.2,
        "mixup": 0.8,
        "cutmix": 1.0,
        "randaugment_operations": 1,
        "erasing": 0.25,
        "erasing_fill": "noise",
    },
    "optimisation": {"average_decay": 0.9, "warmup_epochs": 0.5, "layer_decay": 0.8},
    "arguments": {"gradient_accumulation_steps": 2, "lr_scheduler_type": "cosine"},
}


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for part in parts:
        for name, value in copy.deepcopy(part).items():
            both = isinstance(value, dict) and isinstance(result.get(name), dict)
            result[name] = merged(result[name], value) if both else value
    return result


@pytest.fixture(autouse=True, scope="session")
def _measure_once():
    """A run measures the machine, counts its model's operations and ends with a picture: of many runs, once is enough.

    A run also collects garbage, and would look through all that is there by now each time.
    """
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        rate = meter.matrix_product_rate("cpu")
        patch.setattr(meter, "matrix_product_rate", lambda *_: rate)
        patch.setattr(report, "draw_curves", lambda path, log: False)
        for count in (plan.forward_flops, plan.training_flops):
            patch.setattr(plan, count.__name__, _once_for_a_config(count))
        yield


def _once_for_a_config(count: Callable[..., int]) -> Callable[..., int]:
    kept: dict[Any, int] = {}

    def counted(model: torch.nn.Module, size: tuple[int, int]) -> int:
        trained = tuple(parameter.requires_grad for parameter in model.parameters())
        key = (type(model), model.config.to_json_string(use_diff=False), trained, size)
        if key not in kept:
            kept[key] = count(model, size)
        return kept[key]

    return counted


@pytest.fixture(scope="session")
def _warm(tmp_path_factory):
    """What a run imports and counts, imported and counted before processes are forked."""
    pytest.importorskip("sklearn")
    gc.freeze()
    short = {"arguments": {"output_dir": str(tmp_path_factory.mktemp("warm") / "run"), "max_steps": 1}}
    train(merged(TINY, BUSY, short))


@pytest.fixture(scope="session")
def tiny() -> Callable[..., dict[str, Any]]:
    """`tiny({"arguments": {...}}, ...)`: the recipe with these parts laid over it."""
    pytest.importorskip("sklearn")
    return lambda *parts: merged(TINY, *parts)


@pytest.fixture(scope="session")
def busy() -> dict[str, Any]:
    return copy.deepcopy(BUSY)


@pytest.fixture(scope="session")
def tiny_vit() -> dict[str, Any]:
    """The section `model` of a recipe: transformers' own ViT of the tiny recipe's sizes."""
    config = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return {"type": "vit", "config": config | {"image_size": 8, "patch_size": 2}}


@pytest.fixture
def in_a_child(run_in_processes) -> Callable[..., int]:
    """`in_a_child(function)`: the exit status of a process that runs it, or minus its signal."""
    return lambda function: run_in_processes(1, function)[0]


@pytest.fixture(scope="session")
def kill_at_step() -> Callable[[int], None]:
    """`kill_at_step(3)`: this process ends without notice when step 3 is done, of a recipe with `average_decay`."""

    def kill(step: int) -> None:
        update = WeightAverage.on_step_end

        def on_step_end(self, args, state, control, **kwargs):
            update(self, args, state, control, **kwargs)
            if state.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)

        WeightAverage.on_step_end = on_step_end

    return kill


@pytest.fixture
def weights() -> Callable[[Path], bytes]:
    """The bytes of the trained and the averaged weights in a run's folder."""

    def read(folder: Path) -> bytes:
        return b"".join(
            path.read_bytes() for path in sorted(folder.glob("**/model.safetensors")) if "checkpoint" not in str(path)
        )

    return read


@pytest.fixture(scope="session")
def run_in_processes(_warm) -> Callable[..., list[int]]:
    """`run_in_processes(2, function)`: the exit statuses (or minus the signals) of so many gloo processes that run it.

    `before` runs first in each. After `limit` seconds all are ended.
    """

    def run(count: int, function: Callable[[], Any], before: Callable[[], Any] | None = None, limit: int = 120):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        sys.stdout.flush()
        children = [_child(function, before, rank, count, port, limit) for rank in range(count)]
        return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]

    return run


def _child(function, before, rank: int, count: int, port: str, limit: int) -> int:
    child = os.fork()
    if child:
        return child
    status = 70
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(limit)
        torch.set_num_threads(1)
        os.environ["OMP_NUM_THREADS"] = "1"  # accelerate warns where it is not said
        if count > 1:
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": str(count)}
            os.environ |= {"WORLD_SIZE": str(count), "RANK": str(rank), "LOCAL_RANK": str(rank)}
        if before is not None:
            before()
        function()
        status = 0
    except SystemExit as leaving:
        status = int(leaving.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
