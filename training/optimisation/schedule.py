"""transformers' schedules of the learning rate, with warm-up and cool-down also in epochs."""

import json
from typing import Any

import torch
from transformers import TrainingArguments, get_scheduler

from ...configuration.reasons import in_one_line
from ..errors import TrainingRefusedError
from ..recipe import Optimisation


def make_schedule(
    optimizer: Any, args: TrainingArguments, optimisation: Optimisation, steps: int, steps_per_epoch: int
) -> Any:
    """The schedule of a run for its optimiser.

    Raises:
        TrainingRefusedError: the warm-up, or it and the cool-down, do not fit into the run, or `lr_scheduler_kwargs` is
            not what this schedule takes.
    """
    warmup, options = schedule_steps(args, optimisation, steps, steps_per_epoch)
    try:
        return get_scheduler(
            args.lr_scheduler_type,
            optimizer=optimizer,
            num_warmup_steps=warmup,
            num_training_steps=steps,
            scheduler_specific_kwargs=options,
        )
    except (TypeError, ValueError) as error:
        kind = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
        reason = in_one_line(error)
        raise TrainingRefusedError(
            f"the schedule {kind} cannot be made with lr_scheduler_kwargs={options}: {reason}; write what it takes"
        ) from error


def check_schedule(args: TrainingArguments, optimisation: Optimisation, steps: int, steps_per_epoch: int) -> None:
    """Refuse before the run what `make_schedule` would refuse in it."""
    stand_in = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    make_schedule(stand_in, args, optimisation, max(steps, 1), steps_per_epoch)


def schedule_steps(
    args: TrainingArguments, optimisation: Optimisation, steps: int, steps_per_epoch: int
) -> tuple[int, dict[str, Any]]:
    """Steps of the warm-up, and what else the schedule wants to know.

    Raises:
        TrainingRefusedError: the warm-up, or it and the cool-down, do not fit into the run.
    """
    warming: float = args.get_warmup_steps(steps)
    if optimisation.warmup_epochs is not None:
        warming = optimisation.warmup_epochs * steps_per_epoch
    warmup = min(round(warming), steps)
    options = _options(args.lr_scheduler_kwargs)
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "warmup_stable_decay":
        cooldown = 0.2 * steps
        if optimisation.cooldown_epochs is not None:
            cooldown = optimisation.cooldown_epochs * steps_per_epoch
        cooldown = options.get("num_decay_steps", cooldown)
        if steps_per_epoch and warming + cooldown >= steps + 1:
            raise TrainingRefusedError(
                f"a warm-up of {round(warming)} steps and a cool-down of {round(cooldown)} are longer than the run of"
                f" {steps}: shorten one of them (warmup_epochs, cooldown_epochs), or train for longer"
            )
        options["num_decay_steps"] = min(round(cooldown), steps - warmup)  # both may have been rounded up
    elif steps_per_epoch and warming >= steps and args.max_steps <= 0:  # a trial of a few steps is told by its plan
        raise TrainingRefusedError(
            f"a warm-up of {round(warming)} steps leaves nothing of the run of {steps}: shorten it (warmup_epochs,"
            " warmup_steps), train for longer, or try a few steps (--set max_steps=20)"
        )
    return warmup, options


def _options(given: Any) -> dict[str, Any]:
    try:
        return dict(json.loads(given) if isinstance(given, str) else given or {})
    except (TypeError, ValueError) as error:
        raise TrainingRefusedError(
            f"lr_scheduler_kwargs={given!r} is not a mapping; write lines of the form name: value"
        ) from error
