"""An exponential moving average of the weights, updated after each step (Polyak and Juditsky 1992)."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback

from ..processes.sharded import in_parts_like, whole_tensors

FILE_NAME = "averaged.safetensors"


class WeightAverage(TrainerCallback):
    """average = d average + (1 - d) weights, with d = min(decay, (1 + step) / (10 + step)).

    The smaller decay at the beginning lets go of the first values.

    Args:
        model: Whose parameters and buffers are averaged.
        decay: In [0, 1].
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.decay = decay
        self.average = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """After optimisation step `step`, from 1."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, tensor in self.model.state_dict().items():
            kept = self.average[name] = in_parts_like(self.average[name], tensor)
            if kept.is_floating_point():
                kept.lerp_(tensor, 1 - decay)
            else:
                kept.copy_(tensor)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.update(state.global_step)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The model has the averaged weights inside."""
        own = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}
        self.model.load_state_dict({name: in_parts_like(kept, own[name]) for name, kept in self.average.items()})
        try:
            yield
        finally:
            self.model.load_state_dict(own, strict=True)

    def save(self, folder: str | Path, write: bool = True) -> None:
        """Write the average; of a model in parts, all processes must ask, and one writes."""
        tensors = whole_tensors(self.average, keep=write)
        if write:
            tensors = {name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}
            save_file(tensors, str(Path(folder, FILE_NAME)), metadata={"format": "pt"})

    def load(self, folder: str | Path) -> None:
        """Raises `KeyError` where the file has other tensors."""
        loaded = load_file(str(Path(folder, FILE_NAME)))
        if loaded.keys() != self.average.keys():
            raise KeyError(f"{FILE_NAME} holds other tensors than the model")
        self.average = {name: in_parts_like(loaded[name], tensor) for name, tensor in self.average.items()}
