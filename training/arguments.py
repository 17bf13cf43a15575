"""transformers' `TrainingArguments` for a recipe: our defaults, and the device and launcher that there are."""

import math
from typing import Any

from transformers import TrainingArguments

from ..configuration.reasons import in_one_line
from .errors import TrainingRefusedError
from .processes.world import as_launched, device_arguments
from .quiet import quiet_libraries
from .recipe import Recipe
from .watching.reporters import check_reporters

# In the place of transformers' own; a recipe's `arguments` go before.
DEFAULTS: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 2,
    "logging_steps": 10,
    "report_to": "none",
    "optim": "adamw_torch_fused",
    "per_device_eval_batch_size": 64,
    "ddp_find_unused_parameters": False,
    "ddp_timeout": 600,  # seconds that a process waits for another one
}


def training_arguments(recipe: Recipe) -> TrainingArguments:
    """transformers' arguments for a recipe; `TrainingRefusedError` where it does not accept them."""
    values = {"output_dir": f"runs/{recipe.name}", "project": recipe.name, **DEFAULTS, **recipe.arguments}
    values |= device_arguments(values) | {"remove_unused_columns": False}
    values.setdefault("disable_tqdm", True)
    with as_launched(values):
        try:
            with quiet_libraries():
                args = TrainingArguments(**values)
        except (ValueError, TypeError, ImportError, RuntimeError) as error:
            reason = in_one_line(error)
            raise TrainingRefusedError(f"TrainingArguments does not accept the recipe: {reason}") from error
    check_reporters(list(args.report_to or ()))
    _check_values(args)
    return args


def _check_values(args: TrainingArguments) -> None:
    """Refuse what torch and accelerate would refuse in the middle of a start, or take for something else."""
    for name, low, high, wanted in (
        ("adam_beta1", 0, 1, "at least 0 and less than 1"),
        ("adam_beta2", 0, 1, "at least 0 and less than 1"),
        ("adam_epsilon", 0, math.inf, "0 or more"),
        ("dataloader_num_workers", 0, math.inf, "0 or more"),
        ("dataloader_prefetch_factor", 1, math.inf, "1 or more"),
    ):
        value = getattr(args, name)
        if value is not None and not low <= value < high:
            raise TrainingRefusedError(f"arguments.{name}={value} is out of range; write a number that is {wanted}")
    accumulation: Any = args.accelerator_config
    if "num_steps" in (accumulation.gradient_accumulation_kwargs or {}):  # the plan would not know of it
        raise TrainingRefusedError(
            "arguments.accelerator_config: num_steps of gradient_accumulation_kwargs is not for recipes; use"
            " gradient_accumulation_steps"
        )
