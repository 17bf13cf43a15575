"""Where in its epochs a run is, after it has gone on too."""

from typing import Any

from transformers import TrainerCallback

from .images.batches import EpochBatches


class Epochs(TrainerCallback):
    """Says to the sampler which epoch it is, and to the state how often the recipe logs, evaluates and saves.

    transformers takes these steps from the checkpoint, and a run may go on with others.
    """

    def __init__(self, batches: EpochBatches) -> None:
        self.batches = batches

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.next = state.global_step // self.batches.steps
        state.compute_steps(args, state.max_steps)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches.set_epoch(self.next)
        self.next += 1
