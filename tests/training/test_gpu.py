"""The same commands on NVIDIA GPUs, by nccl: DDP and FSDP2, compiled, in bf16. One GPU is enough; two are used.

These are the commands that users type, so each starts processes of its own.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from qkvit.training.processes.world import LAUNCHER_FILES

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]
GPUS = min(2, torch.cuda.device_count())
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(GPUS)]
ACCELERATE = ["-m", "accelerate.commands.accelerate_cli", "launch", "--num_processes", str(GPUS)]
ACCELERATE += ["--main_process_port", "0", "--config_file"]
COMPILED = {"bf16": True, "torch_compile": True}


@pytest.fixture
def start(tiny, busy, tmp_path):
    """`start(launcher, folder, arguments)`: a run of twenty steps; its folder."""

    def run(launcher, folder, arguments=(), *more, by_image=True):
        made = tiny(
            busy,
            {
                "data": {"held_out": 0.2},
                "optimisation": {"dropout_by_image": by_image},
                "arguments": {
                    "output_dir": str(tmp_path / folder),
                    "max_steps": 20,
                    "save_steps": 5,
                    "save_total_limit": 9,
                    "per_device_train_batch_size": 8 // GPUS,
                    **dict(arguments),
                },
            },
        )
        recipe = tmp_path / "recipe.yaml"
        recipe.write_text(json.dumps(made))
        command = [sys.executable, *launcher, "-m", "qkvit.training.train", str(recipe), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, timeout=500, env=environment, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        return tmp_path / folder

    return run


def losses(folder):
    log = json.loads((folder / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    found = torch.tensor([entry["loss"] for entry in log if "loss" in entry])
    assert len(found) == 20
    assert found.isfinite().all()
    return found


def launcher(name):
    return [*ACCELERATE, str(LAUNCHER_FILES / f"{name}.yaml")]


def test_fsdp2_is_used_and_has_the_losses_of_ddp(start):
    ddp, fsdp = start(TORCHRUN, "ddp"), start(launcher("fsdp2"), "fsdp2")
    torch.testing.assert_close(losses(fsdp), losses(ddp), atol=1e-4, rtol=0)
    metrics = [json.loads((folder / "metrics.json").read_text())["validation"] for folder in (ddp, fsdp)]
    assert metrics[0]["images"] == metrics[1]["images"] == 359
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], abs=1e-3)


@pytest.mark.parametrize("name", ["torchrun", "fsdp2"])
def test_compiled_in_bf16(start, name):
    how = TORCHRUN if name == "torchrun" else launcher(name)
    precise = start(TORCHRUN, "precise", by_image=False)
    rough = start(how, "rough", COMPILED, by_image=False)
    # The first losses are of the same weights (dropout is drawn otherwise in a compiled graph).
    torch.testing.assert_close(losses(rough)[:3], losses(precise)[:3], atol=0.2, rtol=0)


def test_in_fp16_losses_are_near_those_of_float32(start):
    """The scaler leaves out steps until its scale fits, so they are not the same to the last digits of fp16."""
    precise = start(TORCHRUN, "precise", by_image=False)
    rough = start(TORCHRUN, "rough", {"fp16": True}, by_image=False)
    torch.testing.assert_close(losses(rough)[:3], losses(precise)[:3], atol=0.2, rtol=0)


def test_a_sharded_run_goes_on(start):
    """Attention's backward pass on a GPU adds in any order: so near, and not equal."""
    whole = start(launcher("fsdp2"), "whole")
    half = start(launcher("fsdp2"), "half")
    for name in ("checkpoint-20", "checkpoint-15"):
        for path in sorted((half / name).rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (half / name).rmdir()
    (half / "metrics.json").unlink()
    start(launcher("fsdp2"), "half", (), "--resume")
    torch.testing.assert_close(losses(half), losses(whole), atol=1e-4, rtol=0)
