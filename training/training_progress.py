"""One line while a recipe is trained: loss, learning rate, images a second, waiting for data, operations a second."""

import time
from typing import Any

from .progress import ProgressBar


class TrainingProgress(ProgressBar):
    """The progress bar, with what a run does; in the first process alone.

    Args:
        trainer: Counts images and the time that it waited.
    """

    def __init__(self, description: str = "training") -> None:
        super().__init__(description)
        self.trainer: Any = None
        self._last = (0.0, 0, 0.0)  # time, images, seconds waited

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last = (time.perf_counter(), self.trainer.images_seen, self.trainer.waited)
        if state.is_world_process_zero:
            super().on_train_begin(args, state, control, **kwargs)
            self.bar.update(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.bar is None or not logs or "loss" not in logs:
            return
        before, self._last = self._last, (time.perf_counter(), self.trainer.images_seen, self.trainer.waited)
        seconds, images, waited = (now - then for now, then in zip(self._last, before, strict=True))
        if seconds <= 0:
            return
        rate = images * args.world_size / seconds
        parts = [f"loss {logs['loss']:.3f}", f"lr {logs.get('learning_rate', 0):.1e}", f"{rate:,.0f} images/s"]
        parts.append(f"{100 * waited / seconds:.0f} % waiting for data")
        if self.trainer.flops:
            parts.append(f"{3 * self.trainer.flops * rate / 1e9:,.0f} GFLOP/s")
        self.bar.set_postfix_str(", ".join(parts), refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.bar is not None:
            super().on_train_end(args, state, control, **kwargs)
            self.bar = None
