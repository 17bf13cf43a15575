"""The learning rate warms up, stays and cools down within the run."""

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import TrainingArguments, get_scheduler

from qkvit.training import TrainingRefusedError
from qkvit.training.optimisation.schedule import schedule_steps
from qkvit.training.recipe import Optimisation


def arguments(**fields):
    return TrainingArguments(
        output_dir="unused", use_cpu=True, lr_scheduler_type="warmup_stable_decay", learning_rate=1.0, **fields
    )


@pytest.mark.parametrize(
    ("fields", "optimisation"),
    [
        ({}, {"warmup_epochs": 1, "cooldown_epochs": 5}),
        ({"warmup_steps": 20}, {"cooldown_epochs": 3}),
        ({"warmup_steps": 0.9}, {}),
        ({"lr_scheduler_kwargs": {"num_decay_steps": 41}}, {}),
        ({"lr_scheduler_kwargs": json.dumps({"num_decay_steps": 31})}, {"warmup_epochs": 1}),
    ],
)
def test_what_does_not_fit_is_refused(raises_sentence, fields, optimisation):
    with raises_sentence(TrainingRefusedError, "warm-up", "cool-down", "40", "cooldown_epochs"):
        schedule_steps(arguments(**fields), Optimisation(**optimisation), 40, 10)


@given(st.integers(1, 60), st.floats(0, 1), st.booleans())
def test_what_fits_but_for_rounding_is_accepted(steps, share, in_epochs):
    if in_epochs:  # of one epoch
        args, optimisation = arguments(), Optimisation(warmup_epochs=share, cooldown_epochs=1 - share)
    else:  # the cool-down is a fifth
        args, optimisation = arguments(warmup_steps=min(share, 0.8)), Optimisation()
    warmup, options = schedule_steps(args, optimisation, steps, steps)
    assert warmup + options["num_decay_steps"] <= steps
    assert abs(options["num_decay_steps"] - (1 - share if in_epochs else 0.2) * steps) <= 1


def test_the_rate_stays_and_falls_to_zero():
    args, optimisation = arguments(), Optimisation(warmup_epochs=1, cooldown_epochs=2)
    warmup, options = schedule_steps(args, optimisation, 40, 10)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_scheduler(args.lr_scheduler_type, optimizer, warmup, 40, scheduler_specific_kwargs=options)
    rates = []
    for _ in range(41):
        rates += schedule.get_last_lr()
        optimizer.step()
        schedule.step()
    assert [step for step, rate in enumerate(rates) if rate == 1] == list(range(10, 21))
    assert rates[40] == pytest.approx(0, abs=1e-9)
