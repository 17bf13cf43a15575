"""FSDP2 on two gloo processes: accelerate's own preparation, our Trainer, and the numbers of one process.

accelerate makes DDP of FSDP on a CPU; `sharding_on_a_cpu` alone is patched, all that follows is what GPUs would run.
"""

import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.tensor import DTensor

from qkvit.training import TrainingRefusedError, TrainingStoppedError, train
from qkvit.training.checkpoints import newest_whole
from qkvit.training.trainer import RecipeTrainer


def sharding_on_a_cpu():
    """What `accelerate launch --config_file fsdp2.yaml` sets, and accelerate taking gloo processes for GPUs."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    os.environ |= {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
    }
    original = AcceleratorState.__init__

    def patched(self, *args, fsdp_plugin=None, **kwargs):
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if self.distributed_type == DistributedType.MULTI_CPU:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, DistributedType.FSDP
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = patched
    measure = RecipeTrainer._measure

    def sharded(self, *args):
        assert all(isinstance(each, DTensor) for each in self.bare_model.qkvit.layers.parameters()), "a test of nothing"
        assert not self.accelerator.state.fsdp_plugin.cpu_ram_efficient_loading
        return measure(self, *args)

    RecipeTrainer._measure = sharded


@pytest.fixture(scope="module")
def recipe(tiny, busy, tmp_path_factory):
    """`recipe(folder, processes)`: the same run for any number of processes."""
    root = tmp_path_factory.mktemp("sharded")

    def make(folder, processes, *parts):
        arguments = {
            "output_dir": str(root / folder),
            "per_device_train_batch_size": 8 // processes,
            "max_steps": 20,
            "save_steps": 10,
            "save_total_limit": 9,
            "per_device_eval_batch_size": 179,  # of 359 images: of two processes, one has a batch more than the other
        }
        fixed = {"data": {"held_out": 0.2}, "optimisation": {"dropout_by_image": True}, "arguments": arguments}
        made = tiny(busy, fixed, *parts)
        return made, root / folder

    return make


@pytest.fixture(scope="module")
def one(recipe, run_in_processes):
    """The folder of a run on one process."""
    made, folder = recipe("one", 1)
    assert run_in_processes(1, lambda: train(made)) == [0]
    return folder


@pytest.fixture(scope="module")
def two(recipe, run_in_processes):
    """The folder of the same run, sharded over two."""
    made, folder = recipe("two", 2)
    assert run_in_processes(2, lambda: train(made), sharding_on_a_cpu) == [0, 0]
    return folder


def losses(folder):
    log = json.loads((folder / "checkpoint-20" / "trainer_state.json").read_text())["log_history"]
    return torch.tensor([entry["loss"] for entry in log if "loss" in entry])


def assert_near(first, second, tolerance):
    first, second = load_file(first), load_file(second)
    assert first.keys() == second.keys()
    for name in first:
        if not name.endswith("k_proj.bias"):  # its gradient is rounding, which Adam makes steps of
            torch.testing.assert_close(first[name], second[name], atol=tolerance, rtol=0, msg=name)


def test_twenty_steps_of_adamw_are_those_of_one_process(one, two):
    assert len(losses(one)) == 20
    torch.testing.assert_close(losses(one), losses(two), atol=1e-5, rtol=0)
    for name in ("model.safetensors", "averaged/model.safetensors"):
        assert_near(one / name, two / name, 1e-5)


def test_what_is_left_is_the_same_files(one, two):
    def names(folder):
        found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        return found - {"checkpoint-20/optimizer.pt"}

    assert names(one) == names(two)
    assert json.loads((two / "config.json").read_text())["architectures"] == ["QKViTForImageClassification"]
    saved = [torch.load(each / "checkpoint-20" / "optimizer.pt", weights_only=True) for each in (one, two)]
    assert saved[0]["state"].keys() == saved[1]["state"].keys()
    for index, state in saved[0]["state"].items():
        for name, value in state.items():
            assert type(saved[1]["state"][index][name]) is torch.Tensor, "whole, and no DTensor"
            assert saved[1]["state"][index][name].shape == value.shape


def test_each_image_is_counted_once_also_where_a_process_has_none_left(one, two):
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    for name in ("validation", "validation, averaged weights"):
        assert metrics[0][name]["images"] == metrics[1][name]["images"] == 359
        assert metrics[0][name]["loss"] == pytest.approx(metrics[1][name]["loss"], abs=1e-5)


def test_a_killed_sharded_run_ends_with_the_same_bits(recipe, run_in_processes, kill_at_step, two, weights):
    made, folder = recipe("killed", 2)

    def first():
        kill_at_step(12)
        train(made)

    assert run_in_processes(2, first, sharding_on_a_cpu) == [-signal.SIGKILL] * 2
    assert newest_whole(folder)[0].name == "checkpoint-10"
    assert run_in_processes(2, lambda: train(made, resume=True), sharding_on_a_cpu) == [0, 0]
    assert weights(folder) == weights(two)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)], ids=["gathered", "cut"])
def test_a_checkpoint_does_not_know_how_it_was_sharded(
    recipe, run_in_processes, kill_at_step, one, weights, before, after
):
    """It goes on, with another number of processes and with FSDP or without, to the losses of the whole run."""
    name = f"from-{before}-to-{after}"
    made, folder = recipe(name, before)
    patches = {1: None, 2: sharding_on_a_cpu}

    def first():
        kill_at_step(12)
        train(made)

    assert run_in_processes(before, first, patches[before]) == [-signal.SIGKILL] * before
    made, _ = recipe(name, after)
    allow = ["processes", "per_device_train_batch_size"]
    assert run_in_processes(after, lambda: train(made, resume=True, allow=allow), patches[after]) == [0] * after
    torch.testing.assert_close(losses(folder), losses(one), atol=1e-5, rtol=0)
    assert_near(folder / "averaged/model.safetensors", one / "averaged/model.safetensors", 1e-5)


def test_in_bf16_the_weights_stay_in_float32(recipe, run_in_processes):
    """What FSDP2 casts are copies; it also rebuilds the model's outputs."""
    made, folder = recipe("bf16", 2, {"arguments": {"bf16": True, "max_steps": 2, "save_steps": 2}})
    assert run_in_processes(2, lambda: train(made), sharding_on_a_cpu) == [0, 0]
    for name in ("model.safetensors", "averaged/model.safetensors"):
        assert {tensor.dtype for tensor in load_file(folder / name).values()} == {torch.float32}


def test_fsdp_that_is_not_there_is_refused(tiny, tmp_path, monkeypatch, raises_sentence):
    """accelerate would train without it, and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with raises_sentence(TrainingRefusedError, "FSDP is asked for", "GPUs"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_is_not_finite_in_one_process_stops_both_with_its_sentence(recipe, run_in_processes, capfd):
    """The layer is looked for by all together: a pass of one process alone would wait for the other for ever."""
    made, _ = recipe("nan", 2)
    forward = RecipeTrainer._forward

    def breaks(self, *args):
        outputs = forward(self, *args)
        if os.environ["RANK"] == "1" and self.state.global_step == 2:
            outputs.logits = outputs.logits * float("nan")
        return outputs

    def both():
        RecipeTrainer._forward = breaks
        try:
            train(made)
        except TrainingStoppedError as error:
            print(f"caught: {error}")
            raise SystemExit(1) from error

    assert run_in_processes(2, both, sharding_on_a_cpu, limit=60) == [1, 1]
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("caught: ")]
    assert len(said) == 2
    assert said[0] == said[1]
    assert "in step 3, first in the loss" in said[0]
