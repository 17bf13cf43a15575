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


def arguments(kind="warmup_stable_decay", **fields):
    return TrainingArguments(output_dir="unused", use_cpu=True, lr_scheduler_type=kind, learning_rate=1.0, **fields)


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


@pytest.mark.parametrize("kind", ["linear", "cosine", "constant_with_warmup"])
@pytest.mark.parametrize(
    ("fields", "optimisation"), [({"warmup_steps": 40}, {}), ({"warmup_steps": 10000}, {}), ({}, {"warmup_epochs": 4})]
)
def test_a_warm_up_that_leaves_nothing_of_the_run_is_refused(raises_sentence, kind, fields, optimisation):
    with raises_sentence(TrainingRefusedError, "warm-up", "the run of 40", "warmup_epochs", "warmup_steps"):
        schedule_steps(arguments(kind, **fields), Optimisation(**optimisation), 40, 10)
    assert schedule_steps(arguments(kind, **fields), Optimisation(**optimisation), 10001, 10)[0] < 10001
    trial = arguments(kind, **fields, max_steps=40)
    assert schedule_steps(trial, Optimisation(**optimisation), 40, 10)[0] == 40


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
