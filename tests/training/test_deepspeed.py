"""ZeRO-2 and ZeRO-3 on two gloo processes, where the package deepspeed is installed (it then uses the CPU)."""

import json
import os

import pytest
import torch

from qkvit.training import TrainingRefusedError, train
from qkvit.training.trainer import RecipeTrainer

pytest.importorskip("deepspeed", reason="deepspeed is not installed")


def zero_on_a_cpu(stage):
    """What `accelerate launch --config_file deepspeed-zero3.yaml` sets, and accelerate taking gloo for GPUs."""

    def patch():
        from accelerate.state import AcceleratorState, PartialState
        from accelerate.utils import DistributedType

        os.environ |= {
            "DS_ACCELERATOR": "cpu",
            "ACCELERATE_USE_DEEPSPEED": "true",
            "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage),
            "ACCELERATE_DEEPSPEED_ZERO3_INIT": "false",
            "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL": "true",
        }
        original = AcceleratorState.__init__

        def patched(self, *args, deepspeed_plugin=None, **kwargs):
            original(self, *args, deepspeed_plugin=deepspeed_plugin, **kwargs)
            if self.distributed_type == DistributedType.MULTI_CPU:
                import deepspeed

                deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
                self.distributed_type = PartialState._shared_state["distributed_type"] = DistributedType.DEEPSPEED
                deepspeed_plugin.set_mixed_precision(self._mixed_precision)
                deepspeed_plugin.select(_from_accelerator_state=True)
                self.deepspeed_plugins = {"default": deepspeed_plugin}

        AcceleratorState.__init__ = patched
        measure = RecipeTrainer._measure

        def counted(self, *args):
            assert self.deepspeed.zero_optimization_stage() == stage, "a test of nothing"
            return measure(self, *args)

        RecipeTrainer._measure = counted

    return patch


@pytest.fixture
def recipe(tiny, busy, tmp_path):
    def make(folder, processes):
        arguments = {
            "output_dir": str(tmp_path / folder),
            "per_device_train_batch_size": 8 // processes,
            "max_steps": 8,
            "save_steps": 4,
            "per_device_eval_batch_size": 179,  # of 359 images: of two processes, one has a batch more than the other
        }
        options = {"dropout_by_image": True, "average_decay": None}
        return tiny(
            busy, {"data": {"held_out": 0.2}, "optimisation": options, "arguments": arguments}
        ), tmp_path / folder

    return make


def losses(folder):
    log = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    return torch.tensor([entry["loss"] for entry in log if "loss" in entry])


@pytest.mark.parametrize("stage", [2, 3])
def test_the_losses_are_those_of_one_process_and_a_run_goes_on_to_the_bit(recipe, run_in_processes, weights, stage):
    made, one = recipe("one", 1)
    assert run_in_processes(1, lambda: train(made)) == [0]
    made, two = recipe("two", 2)
    assert run_in_processes(2, lambda: train(made), zero_on_a_cpu(stage)) == [0, 0]
    torch.testing.assert_close(losses(two), losses(one), atol=1e-5, rtol=0)
    ended = weights(two)
    (two / "metrics.json").unlink()
    (two / "checkpoint-8" / "whole.json").unlink()
    assert run_in_processes(2, lambda: train(made, resume=True), zero_on_a_cpu(stage)) == [0, 0]
    assert weights(two) == ended


def test_an_average_is_refused(recipe, run_in_processes):
    made, folder = recipe("averaged", 2)
    made["optimisation"]["average_decay"] = 0.9

    def refused():
        with pytest.raises(TrainingRefusedError, match="average_decay is not for DeepSpeed"):
            train(made)
        assert not folder.exists()

    assert run_in_processes(2, refused, zero_on_a_cpu(3)) == [0, 0]
