"""The section `distillation` of a recipe, and the checks of what needs more than one field.

Checked: distillation, progressive resizing, early stopping, keeping the best checkpoints.
"""

from dataclasses import dataclass
from typing import Any, Literal

from .errors import TrainingRefusedError


@dataclass
class Distillation:
    """Learning from another model.

    Args:
        teacher: A folder or Hub id of a classifier of the same classes (`AutoModelForImageClassification`). `None`: no
            distillation.
        kind: "hard": cross-entropy with the teacher's choice (DeiT, Touvron et al. 2021, arXiv 2012.12877), or "soft":
            the Kullback-Leibler divergence from its probabilities (Hinton et al. 2015, arXiv 1503.02531).
        alpha: The teacher's share of the loss, in [0, 1].
        temperature: tau, of "soft".
        match_labels: "by_name": the teacher has the same class names, in any order; "by_order": its class i is our
            class i, whatever it is called.
    """

    teacher: str | None = None
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    match_labels: Literal["by_name", "by_order"] = "by_name"


def check_methods(recipe: Any) -> None:
    """Refuse what does not go together."""
    _check_distillation(recipe.distillation)
    _check_progressive(recipe.data.progressive)
    _check_best(recipe.optimisation, recipe.arguments)


def _check_distillation(settings: Distillation) -> None:
    if not 0 <= settings.alpha <= 1:
        raise TrainingRefusedError(f"distillation.alpha={settings.alpha} is outside [0, 1]; write a number in it")
    if not settings.temperature > 0:
        raise TrainingRefusedError(
            f"distillation.temperature={settings.temperature} is not above 0; write a positive number"
        )


def _check_progressive(stages: list[list[float]] | None) -> None:
    if stages is None:
        return
    shape = "write pairs such as [[0, 96], [0.5, 128]]: from which share of the run on, and how many pixels"
    if not stages or any(len(stage) != 2 for stage in stages):
        raise TrainingRefusedError(f"data.progressive={stages} is no list of pairs; {shape}")
    shares = [share for share, _ in stages]
    if shares[0] != 0 or sorted(set(shares)) != shares or shares[-1] >= 1:
        raise TrainingRefusedError(f"data.progressive={stages} does not begin at 0 and rise below 1; {shape}")
    if any(pixels < 1 or pixels != int(pixels) for _, pixels in stages):
        raise TrainingRefusedError(f"data.progressive={stages} has a size that is no whole number above 0; {shape}")


def _check_best(optimisation: Any, arguments: dict[str, Any]) -> None:
    for name in ("early_stopping", "keep_best"):
        count = getattr(optimisation, name)
        if count is not None and count < 1:
            raise TrainingRefusedError(f"optimisation.{name}={count} is less than 1; write 1 or more, or leave it out")
    if optimisation.early_stopping_delta < 0:
        raise TrainingRefusedError(
            f"optimisation.early_stopping_delta={optimisation.early_stopping_delta} is negative; write 0 or more"
        )
    wanted = [name for name in ("early_stopping", "keep_best") if getattr(optimisation, name) is not None]
    evaluation = arguments.get("eval_strategy", "epoch")
    if wanted and evaluation == "no":
        raise TrainingRefusedError(
            f"optimisation.{wanted[0]} needs evaluations; set arguments.eval_strategy to epoch or steps"
        )
    if optimisation.keep_best is not None and not _saved_where_evaluated(arguments, evaluation):
        raise TrainingRefusedError(
            "optimisation.keep_best needs a checkpoint where the model is evaluated; give save_strategy and save_steps"
            " the values of eval_strategy and eval_steps"
        )


def _saved_where_evaluated(arguments: dict[str, Any], evaluation: str) -> bool:
    if arguments.get("save_strategy", "epoch") != evaluation:
        return False
    save, every = arguments.get("save_steps", 500), arguments.get("eval_steps")
    every = arguments.get("logging_steps", 10) if every is None else every  # as TrainingArguments has it
    return evaluation != "steps" or save % every == 0
