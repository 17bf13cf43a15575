"""Progressive resizing: small images at the beginning of a run, larger ones later (Howard 2018; Tan and Le 2021, arXiv
2104.00298).

The size follows from the epoch alone, and an image's key carries its epoch: so it is the same for workers that read
ahead, for any number of processes, and after a resume.
"""

import dataclasses
import inspect
import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainerCallback

from ..cost import training_flops
from ..errors import TrainingRefusedError

Size = tuple[int, int]


@dataclass(frozen=True)
class Progression:
    """Sizes by epoch.

    Args:
        stages: (first epoch, (height, width)), rising, the first one at 0.
        flops: Operations for training on one image, in each stage.

    Example:

    ```python
    >>> sizes = Progression(((0, (96, 96)), (5, (128, 128))))
    >>> sizes.at(4), sizes.at(5)
    ((96, 96), (128, 128))

    ```
    """

    stages: tuple[tuple[int, Size], ...]
    flops: tuple[int, ...] = ()

    def at(self, epoch: int) -> Size:
        """(height, width) of an epoch's images."""
        return self.stages[self._stage(epoch)][1]

    def flops_at(self, epoch: int) -> int:
        """Operations for training on one of an epoch's images."""
        return self.flops[self._stage(epoch)]

    def _stage(self, epoch: int) -> int:
        return bisect_right([first for first, _ in self.stages], epoch) - 1


def make_progression(stages: list[list[float]], model: nn.Module, steps: int, steps_per_epoch: int) -> Progression:
    """The sizes of a run.

    Args:
        stages: `data.progressive`: (share of the run, pixels). A stage begins with the first epoch at or after its
            share.

    Raises:
        TrainingRefusedError: a size is not of whole patches, or a stage has no epoch.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> model = QKViTForImageClassification(QKViTConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1))
    >>> make_progression([[0, 64], [0.5, 128]], model, steps=90, steps_per_epoch=10).stages
    ((0, (64, 64)), (5, (128, 128)))

    ```
    """
    config: Any = model.config
    patch = getattr(config, "patch_size", 1)
    patch = max(patch) if isinstance(patch, (list, tuple)) else int(patch)
    epochs = math.ceil(steps / steps_per_epoch)
    made: list[tuple[int, Size]] = []
    for share, pixels in stages:
        size = int(pixels)
        if size % patch:
            whole = max(round(size / patch), 1) * patch
            raise TrainingRefusedError(
                f"data.progressive has {size} pixels, which are no whole patches of {patch}; write {whole}"
            )
        made.append((math.ceil(share * epochs - 1e-9), (size, size)))
    firsts = [first for first, _ in made]
    if len(set(firsts)) < len(firsts) or firsts[-1] >= epochs:
        raise TrainingRefusedError(
            f"data.progressive={stages} has a stage without an epoch in a run of {epochs}; write fewer stages, or"
            " train for longer"
        )
    return Progression(tuple(made))


def with_progression(plan: Any, stages: list[list[float]] | None, model: nn.Module) -> Any:
    """The plan with the sizes of the epochs, and what an image costs on average; the model learns to take them."""
    if stages is None or plan.steps_per_epoch < 1:
        return plan
    sizes = make_progression(stages, model, plan.steps, plan.steps_per_epoch)
    allow_sizes(model)
    sizes = dataclasses.replace(sizes, flops=tuple(training_flops(model, size) for _, size in sizes.stages))
    epochs = math.ceil(plan.steps / plan.steps_per_epoch)
    mean = sum(map(sizes.flops_at, range(epochs))) / epochs
    return dataclasses.replace(plan, progression=sizes, training_flops=round(mean))


def allow_sizes(model: nn.Module) -> None:
    """Let a model of transformers interpolate its positions, where it has to be asked to; ours does so unasked."""
    if "interpolate_pos_encoding" in inspect.signature(model.forward).parameters:
        model.register_forward_pre_hook(
            lambda module, args, kwargs: (args, {"interpolate_pos_encoding": True, **kwargs}), with_kwargs=True
        )


class ProgressiveCost(TrainerCallback):
    """Tells the trainer what an image costs at the size of the epoch.

    Args:
        sizes: By epoch, with their operations.
        trainer: Has `meter` and `batches`.
    """

    def __init__(self, sizes: Progression, trainer: Any) -> None:
        self.sizes, self.trainer = sizes, trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.meter.flops = self.sizes.flops_at(self.trainer.batches.epoch)
