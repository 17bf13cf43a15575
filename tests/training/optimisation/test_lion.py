"""Lion, from bitsandbytes, through `optim` of TrainingArguments."""

import signal

import pytest
import torch
from transformers import TrainingArguments

from qkvit.training import train
from qkvit.training.optimisation.optimizers import make_optimizer
from qkvit.training.plan import kept_numbers
from qkvit.training.recipe import Optimisation

pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")


def test_a_step_is_the_sign_of_the_blended_momentum(tiny_model, tmp_path):
    """Chen et al. 2023 (arXiv 2302.06675), algorithm 2, with the recipe's groups: decay for matrices alone."""
    args = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, optim="lion_32bit", learning_rate=0.01, weight_decay=0.1
    )
    model = tiny_model()
    optimizer = make_optimizer(model, Optimisation(), args)
    decay = {parameter: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
    assert set(decay.values()) == {0.0, 0.1}
    momentum = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        expected = {}
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            blended = args.adam_beta1 * momentum[parameter] + (1 - args.adam_beta1) * parameter.grad
            expected[parameter] = parameter.detach() * (1 - 0.01 * decay[parameter]) - 0.01 * blended.sign()
            momentum[parameter] = args.adam_beta2 * momentum[parameter] + (1 - args.adam_beta2) * parameter.grad
        optimizer.step()
        for parameter, value in expected.items():
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)
    assert kept_numbers(model, Optimisation(), args) == model.num_parameters(only_trainable=True)


def test_a_killed_run_ends_with_the_same_bits(tiny, tmp_path, in_a_child, kill_at_step, weights):
    def recipe(name):
        lion = {"output_dir": str(tmp_path / name), "optim": "lion_32bit"}
        return tiny({"arguments": lion, "optimisation": {"average_decay": 0.9}})

    def dies():
        kill_at_step(5)
        train(recipe("killed"))

    assert in_a_child(lambda: train(recipe("whole"))) == 0
    assert in_a_child(dies) == -signal.SIGKILL
    assert in_a_child(lambda: train(recipe("killed"), resume=True)) == 0
    assert weights(tmp_path / "killed") == weights(tmp_path / "whole")
