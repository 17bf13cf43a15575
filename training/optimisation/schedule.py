"""transformers' schedules of the learning rate, with warm-up and cool-down also in epochs."""

import json
from typing import Any

from transformers import TrainingArguments

from ..errors import TrainingRefusedError
from ..recipe import Optimisation


def schedule_steps(
    args: TrainingArguments, optimisation: Optimisation, steps: int, steps_per_epoch: int
) -> tuple[int, dict[str, Any]]:
    """Steps of the warm-up, and what else the schedule wants to know.

    Raises:
        TrainingRefusedError: the warm-up and the cool-down do not fit into the run.
    """
    warming: float = args.get_warmup_steps(steps)
    if optimisation.warmup_epochs is not None:
        warming = optimisation.warmup_epochs * steps_per_epoch
    warmup = min(round(warming), steps)
    given = args.lr_scheduler_kwargs
    options = dict(json.loads(given) if isinstance(given, str) else given or {})
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
    return warmup, options
