"""One progress bar for a whole training run, in the place of `Trainer`'s bar and its printed dictionaries."""

import sys
from typing import Any

from tqdm import tqdm
from transformers import TrainerCallback


class ProgressBar(TrainerCallback):
    """Steps done, time left and the last training loss, on standard error.

    Where that is a file and not a screen, a line every 20 seconds.
    """

    form = "{desc} {percentage:3.0f} % |{bar}| {elapsed} done, {remaining} to go{postfix}"

    def __init__(self, description: str = "training") -> None:
        self.description = description
        self.bar: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        on_screen = sys.stderr.isatty()
        self.bar = tqdm(
            total=state.max_steps,
            desc=self.description,
            unit=" steps",
            file=sys.stderr,
            dynamic_ncols=on_screen,
            mininterval=0.2 if on_screen else 20.0,
            bar_format=self.form,
        )

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is not None and logs and "loss" in logs:
            self.bar.set_postfix_str(f"loss {logs['loss']:.3f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()
