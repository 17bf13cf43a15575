"""What stops a run before its end: a loss that is not finite, a request."""

import signal
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback


@torch.no_grad()
def first_not_finite(model: nn.Module, pixels: torch.Tensor) -> str:
    """Where a forward pass first gives a number that is not finite: a module's name, "the pixels" or "the loss".

    The pass runs as the model stands (training or evaluation).
    """
    if not torch.isfinite(pixels).all():
        return "the pixels"
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            tensors = output if isinstance(output, (tuple, list)) else [output]
            if not found and any(
                isinstance(each, torch.Tensor) and each.is_floating_point() and not torch.isfinite(each).all()
                for each in tensors
            ):
                found.append(name)

        return hook

    handles = [module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name]
    try:
        model(pixel_values=pixels)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else "the loss"


class StopOnRequest(TrainerCallback):
    """SIGTERM: finish the step, save a checkpoint, leave. Among several processes all agree, after each step."""

    def __init__(self) -> None:
        self.asked = False
        self.stopped = False
        self._before: Any = None

    def _note(self, number: int, frame: Any) -> None:
        self.asked = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        try:
            self._before = signal.signal(signal.SIGTERM, self._note)
        except ValueError:  # not the main thread: nobody sends it signals
            self._before = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        asked = self.asked
        if args.world_size > 1:
            flag = torch.tensor(float(asked), device=args.device)
            torch.distributed.all_reduce(flag)
            asked = bool(flag.item())
        if asked and state.global_step < state.max_steps:
            self.stopped = True
            control.should_save = control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
