"""transformers' schedules of the learning rate, with warm-up and cool-down also in epochs."""

import json
from typing import Any

from transformers import TrainingArguments

from ..recipe import Optimisation


def schedule_steps(
    args: TrainingArguments, optimisation: Optimisation, steps: int, steps_per_epoch: int
) -> tuple[int, dict[str, Any]]:
    """Steps of the warm-up, and what else the schedule wants to know."""
    warmup = args.get_warmup_steps(steps)
    if optimisation.warmup_epochs is not None:
        warmup = round(optimisation.warmup_epochs * steps_per_epoch)
    given = args.lr_scheduler_kwargs
    options = dict(json.loads(given) if isinstance(given, str) else given or {})
    if str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)) == "warmup_stable_decay":
        cooldown = 0.2 * steps
        if optimisation.cooldown_epochs is not None:
            cooldown = optimisation.cooldown_epochs * steps_per_epoch
        options.setdefault("num_decay_steps", round(cooldown))
    return min(warmup, steps), options
