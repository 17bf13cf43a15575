"""One line while a recipe is trained: loss, accuracy, learning rate, speed, waiting for data, operations, memory."""

import shutil
import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback

_BEFORE = 35  # columns before these numbers: share, bar, times of less than an hour


class TrainingProgress(TrainerCallback):
    """The progress bar, with what a run does, on standard error; in the first process alone.

    In the place of `Trainer`'s bar and its printed dictionaries. The numbers are those of the log (`Meter`). Where a
    screen is narrow, the last ones are left out; where it is a file and no screen, there is a line every 20 seconds.
    While the model is evaluated, the line says that in their place.
    """

    def __init__(self) -> None:
        self.bar: Any = None
        self.numbers = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            return
        on_screen = sys.stderr.isatty()
        self.bar = tqdm(
            total=state.max_steps,
            initial=state.global_step,  # of a run that goes on: those steps are no speed
            file=sys.stderr,
            dynamic_ncols=on_screen,
            mininterval=0.2 if on_screen else 20.0,
            bar_format="{percentage:3.0f} % |{bar:5}| {elapsed}, {remaining} left{postfix}",
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.update(state.global_step - self.bar.n)
        self._show_evaluation(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._show_evaluation(control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            self.bar.set_postfix_str(self.numbers)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs or "loss" not in logs:
            return
        width = shutil.get_terminal_size().columns - _BEFORE if self.bar.dynamic_ncols else 10_000  # or it is a file
        self.numbers = numbers_line(logs, width)
        if not control.should_evaluate:
            self.bar.set_postfix_str(self.numbers, refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.close()

    def _show_evaluation(self, control: Any) -> None:
        """An evaluation has no event of its own when it begins; it is decided when a step or an epoch ends."""
        if self.bar is not None and control.should_evaluate:
            self.bar.set_postfix_str("evaluating")

    def close(self) -> None:
        """End the line, also where the run ends before its time."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def numbers_line(logs: dict[str, Any], width: int) -> str:
    """As many of the numbers as `width` columns hold, the most important first.

    Example:

    ```python
    >>> logs = {"loss": 0.3121, "accuracy": 0.914, "learning_rate": 1.2e-3, "images_per_second": 4512.0,
    ...         "waiting_for_data": 0.031, "flops_per_second": 9.5e10, "utilisation": 0.573, "memory_gib": 1.21}
    >>> numbers_line(logs, 100)
    'loss 0.312, acc 91.4 %, lr 1.2e-3, 4,512 img/s, wait 3 %, 95 GFLOP/s (57 %), 1.2 GiB'
    >>> numbers_line(logs, 30)
    'loss 0.312, acc 91.4 %'

    ```
    """
    parts = [f"loss {logs['loss']:.3f}"]
    for name, form in (
        ("accuracy", lambda value: f"acc {100 * value:.1f} %"),
        ("learning_rate", lambda value: "lr " + f"{value:.1e}".replace("e-0", "e-")),
        ("images_per_second", lambda value: f"{value:,.0f} img/s"),
        ("waiting_for_data", lambda value: f"wait {100 * value:.0f} %"),
        ("flops_per_second", lambda value: _operations(value, logs.get("utilisation"))),
        ("memory_gib", lambda value: f"{value:.1f} GiB"),
    ):
        if name in logs:
            parts.append(form(logs[name]))
    while len(parts) > 1 and len(", ".join(parts)) > width:
        parts.pop()
    return ", ".join(parts)


def _operations(rate: float, utilisation: float | None) -> str:
    units = ((1e12, "TFLOP/s"), (1e9, "GFLOP/s"), (1e6, "MFLOP/s"))
    factor, unit = next((pair for pair in units if rate >= pair[0]), units[-1])
    return f"{rate / factor:.3g} {unit}" + (f" ({100 * utilisation:.0f} %)" if utilisation is not None else "")
