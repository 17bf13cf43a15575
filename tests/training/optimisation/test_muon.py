"""Muon and AdamW as one optimiser."""

import copy
import importlib.util
import os
import signal

import pytest
import torch
from transformers import TrainingArguments

from qkvit.training import TrainingRefusedError, train
from qkvit.training.optimisation.muon import MuonWithAdamW
from qkvit.training.optimisation.optimizers import make_optimizer
from qkvit.training.optimisation.parameter_groups import parameter_groups, set_trainable
from qkvit.training.plan import kept_numbers
from qkvit.training.recipe import Optimisation

MUON = Optimisation(optimizer="muon")


def step(model, optimizer, seed):
    torch.manual_seed(seed)
    model(pixel_values=torch.rand(2, 3, 16, 16)).logits.square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


@pytest.fixture
def args(tmp_path):
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, learning_rate=0.01, weight_decay=0.1)


def test_the_plan_counts_the_numbers_that_the_optimiser_keeps(tiny_model, args):
    model = tiny_model()
    optimizer = make_optimizer(model, MUON, args)
    step(model, optimizer, seed=0)
    state = [each for kept in optimizer.state.values() for each in kept.values()]
    numbers = sum(each.numel() for each in state if isinstance(each, torch.Tensor) and each.ndim)
    assert kept_numbers(model, MUON, args) == numbers
    trained = model.num_parameters(only_trainable=True)
    assert kept_numbers(model, Optimisation(), args) == 2 * trained
    args.optim, args.optim_args = "sgd", "momentum=0.9"
    assert kept_numbers(model, Optimisation(), args) == trained
    args.optim_args = None
    assert kept_numbers(model, Optimisation(), args) == 0


def test_matrices_of_layers_and_nothing_else_are_muons(tiny_model):
    model = tiny_model(layer_scale_init_value=0.1, num_register_tokens=2)
    names = [
        name
        for group in parameter_groups(model, Optimisation(optimizer="muon", layer_decay=0.5), 1e-3, 0.1)
        if group["matrices"]
        for name in group["names"]
    ]
    assert set(names) == {name for name, each in model.named_parameters() if ".layers." in name and each.ndim == 2}
    assert len(names) == len(set(names)) == 3 * 6


@pytest.mark.parametrize("trainable", ["all", "only head", "only layer.1"])
def test_each_part_steps_as_torchs_own_optimisers_do(tiny_model, args, trainable):
    """Also where one of the two has nothing to do."""
    model = tiny_model()
    set_trainable(model, trainable)
    other = copy.deepcopy(model)
    groups = parameter_groups(other, MUON, 0.01, 0.1)
    ours = make_optimizer(model, MUON, args)
    theirs = []
    for kind, name, options in (
        (torch.optim.Muon, True, {"adjust_lr_fn": "match_rms_adamw"}),
        (torch.optim.AdamW, False, {}),
    ):
        chosen = [group for group in groups if group["matrices"] is name]
        theirs += [kind(chosen, lr=0.01, **options)] if chosen else []
    for seed in range(3):
        step(model, ours, seed)
        torch.manual_seed(seed)
        other(pixel_values=torch.rand(2, 3, 16, 16)).logits.square().mean().backward()
        for optimizer in theirs:
            optimizer.step()
        other.zero_grad()
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_one_state_that_comes_back_and_one_schedule(tiny_model, args):
    model = tiny_model()
    optimizer = make_optimizer(model, MUON, args)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: 1 / (1 + at))
    step(model, optimizer, 0)
    schedule.step()
    for inner in optimizer.inner:
        assert {group["lr"] for group in inner.param_groups} == {0.005}
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    assert len(saved["state"]) == len(list(model.parameters()))
    step(model, optimizer, 1)
    ended = copy.deepcopy(model.state_dict())

    model.load_state_dict(weights)
    again = make_optimizer(model, MUON, args)
    again.load_state_dict(saved)
    step(model, again, 1)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, ended[name]), name


def test_a_run_with_muon_that_is_killed_ends_with_the_same_bits(tiny, in_a_child, weights, tmp_path):
    def recipe(folder):
        method = {"optimisation": {"optimizer": "muon", "average_decay": 0.9, "layer_decay": 0.9}}
        return tiny(method, {"arguments": {"output_dir": str(tmp_path / folder), "lr_scheduler_type": "cosine"}})

    def dies():
        take = MuonWithAdamW.step

        def once(self, closure=None):
            take(self, closure)
            self.taken = getattr(self, "taken", 0) + 1
            if self.taken == 5:
                os.kill(os.getpid(), signal.SIGKILL)

        MuonWithAdamW.step = once
        train(recipe("killed"))

    assert in_a_child(lambda: train(recipe("whole"))) == 0
    assert in_a_child(dies) == -signal.SIGKILL
    assert in_a_child(lambda: train(recipe("killed"), resume=True)) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")


def test_an_optimiser_whose_package_is_missing_is_one_sentence(tiny, tmp_path, raises_sentence):
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "optim": "lion_32bit"}})
    with raises_sentence(TrainingRefusedError, "lion_32bit", "bitsandbytes"):
        train(recipe)
    assert not (tmp_path / "run").exists()
