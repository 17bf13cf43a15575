"""Which evaluation was the best: early stopping, and the best checkpoints.

Both follow from the evaluations in the log alone, which a checkpoint holds: so a resumed run decides as the
uninterrupted one. What is compared is `metric_for_best_model` of TrainingArguments, which they set to the loss for
`load_best_model_at_end` and for schedules that follow it; or else the accuracy, or the mean average precision where
an image may have several labels. More is better unless the name ends in "loss" or `greater_is_better` is false.
"""

import math
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainingArguments

from ..checkpoints import checkpoints, step_of
from ..errors import TrainingRefusedError, TrainingStoppedError
from ..evaluation import metric_names
from ..recipe import Optimisation
from ..recipe_types import nearest

Scores = list[tuple[int, float]]  # step, score: more is better


def check_best(settings: Optimisation, args: TrainingArguments, steps: int, classes: int, *, multi_label: bool) -> None:
    """Refuse what only a run with its images shows: a metric that is not measured, checkpoints beside evaluations.

    Args:
        steps: Of the whole run; `eval_steps` and `save_steps` below 1 are shares of it.
    """
    known = metric_names(classes, multi_label=multi_label)
    if settings.average_decay is not None:
        known += [f"average_{name}" for name in known]
    name = args.metric_for_best_model
    if name is not None and name.removeprefix("eval_") not in known:
        raise TrainingRefusedError(
            f"arguments.metric_for_best_model={name!r} is not measured; write {' or '.join(known)}"
            f"{nearest(name, known)}"
        )
    if settings.keep_best is None or args.eval_strategy != "steps":
        return
    every, save = (math.ceil(steps * each) if each < 1 else each for each in (args.eval_steps or 1, args.save_steps))
    if save % every:
        raise TrainingRefusedError(
            f"optimisation.keep_best needs a checkpoint where the model is evaluated, and of {steps} steps every"
            f" {save:g}th is saved and every {every:g}th evaluated; give save_steps the value of eval_steps"
        )


def scores(log: list[dict[str, Any]], args: TrainingArguments) -> Scores:
    """The evaluations of a log, in their order.

    Raises:
        TrainingStoppedError: they do not have what is to be compared.
    """
    sign = -1 if args.metric_for_best_model and not args.greater_is_better else 1
    found = []
    for entry in log:
        measured = [each.removeprefix("eval_") for each in entry if each.startswith("eval_")]
        usual = "mean_average_precision" if "micro_f1" in measured else "accuracy"
        name = (args.metric_for_best_model or usual).removeprefix("eval_")
        if measured and name not in measured:
            raise TrainingStoppedError(
                f"the evaluations have no {name!r} to compare: set metric_for_best_model to {' or '.join(measured)}"
            )
        if measured:
            found.append((int(entry["step"]), sign * float(entry[f"eval_{name}"])))
    return found


def since_best(found: Scores, delta: float = 0.0) -> int:
    """How many evaluations there were since the best one; one counts as better if it is by more than `delta`.

    Example:

    ```python
    >>> since_best([(1, 0.5), (2, 0.8), (3, 0.7), (4, 0.8)])
    2

    ```
    """
    best, since = float("-inf"), 0
    for _, score in found:
        if score > best + delta:
            best, since = score, 0
        else:
            since += 1
    return since


class EarlyStopping(TrainerCallback):
    """Stops after `optimisation.early_stopping` evaluations in a row without a new best one."""

    def __init__(self, settings: Optimisation) -> None:
        self.settings = settings

    def reached(self, state: Any, args: TrainingArguments) -> bool:
        """Whether a run in this state is to stop, or has stopped."""
        patience = self.settings.early_stopping
        if patience is None:
            return False
        return since_best(scores(state.log_history, args), self.settings.early_stopping_delta) >= patience

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.reached(state, args):
            control.should_training_stop = True
        return control


def best_checkpoints(output: Path, log: list[dict[str, Any]], count: int | None, args: TrainingArguments) -> list[Path]:
    """The best `count` checkpoints that were evaluated, the best first; of equal ones the older."""
    if not count:
        return []
    by_step = dict(scores(log, args))
    found = [(by_step[step], -step, path) for path in checkpoints(output) if (step := step_of(path)) in by_step]
    return [path for _, _, path in sorted(found, reverse=True)[:count]]
