"""What stops a run before its end from outside: a request, which its workers outlast."""

import atexit
import contextlib
import functools
import multiprocessing
import os
import signal
import sys
from typing import Any

import torch
from transformers import TrainerCallback


def outlast_a_request(worker: int = 0) -> None:
    """Let a process that loads images outlast the first SIGTERM; the second one ends it.

    Launchers and schedulers send it to all processes of a run. A worker that went at once would end the run with an
    error in the middle of the step that it is to finish. One that hangs in a library hears of neither
    (`end_workers_at_exit`).
    """

    def note(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGTERM, note)


@functools.cache
def end_workers_at_exit() -> None:
    """Let no process that loads images outlast this one: Python would ask it to end, and wait for that forever."""

    def end() -> None:
        for child in multiprocessing.active_children():
            if child.daemon:
                child.kill()

    atexit.register(end)


class StopOnRequest(TrainerCallback):
    """SIGTERM or ctrl-C: finish the step, save a checkpoint, leave; a second ctrl-C stops at once.

    Among several processes all agree, after each step and each evaluation. `CheckpointTrainer` sees to it that it is
    saved, and which evaluations are broken off.

    Attributes:
        asked: The signal; 0: none came.
        stopped: Whether the training has ended for it.
    """

    def __init__(self) -> None:
        self.asked = 0
        self.stopped = False
        self._before: dict[int, Any] = {}
        self._speaker = 0
        self._stepped = False  # since the run was started or went on

    def _note(self, number: int, frame: Any) -> None:
        if number == self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        self.asked = number
        if number == signal.SIGINT and os.getpid() == self._speaker:  # not a worker, which has this from its parent
            print("\nfinishing this step and saving it; ctrl-C again stops at once", file=sys.stderr, flush=True)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._speaker = os.getpid() if args.process_index == 0 else 0
        with contextlib.suppress(ValueError):  # not the main thread: nobody sends it signals
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._note)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        self._stepped = True
        return self.stop_if_asked(args, state, control)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        # Of an evaluation before the first step there is nothing to save: that step is made.
        return self.stop_if_asked(args, state, control) if self._stepped else control

    def stop_if_asked(self, args: Any, state: Any, control: Any) -> Any:
        if args.world_size > 1:
            flag = torch.tensor(float(self.asked), device=args.device)
            torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
            self.asked = int(flag.item())
        if self.asked and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if self.stopped and not float(state.epoch).is_integer():
            # Trainer takes it for the end of the epoch. The run that goes on has no evaluation here, and what is best
            # and when to stop early is told by evaluations.
            control.should_evaluate = control.should_save = control.should_log = False
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Let signals do what they did before; for a training that ended with an error too."""
        while self._before:
            signal.signal(*self._before.popitem())
