"""A Trainer that stops where a loss, a gradient or a weight is not finite, before it spoils what is kept."""

import math
from typing import Any

import torch
from torch import nn

from ..errors import TrainingStoppedError
from ..processes.sharded_trainer import ShardedTrainer

_NAMED = 4  # images of a batch that are called by their names in a sentence


class FiniteTrainer(ShardedTrainer):
    """Looks at gradients in each step, and at weights before they are saved; who computes the loss looks at that.

    Raises:
        TrainingStoppedError: one of them is not finite: the step, where it was first seen, and the images.
    """

    model: Any
    train_dataset: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._step_images: list[torch.Tensor] = []  # of each micro-batch of the step, in this process
        super().__init__(*args, **kwargs)

    def _stop_not_finite(self, loss: float, pixels: torch.Tensor, images: list[int]) -> None:
        """For a loss; random numbers are those of the pass that gave it."""
        place = first_not_finite(self.model, pixels)
        sentence = self._what_is_not_finite(f"the loss is {loss}", f"first in {place}", images)
        raise TrainingStoppedError(self.said_by_one(None if math.isfinite(loss) else sentence))

    def _what_is_not_finite(self, what: str, where: str, images: list[int]) -> str:
        indices = sorted(set(images))
        names = [self.train_dataset.split.name(index) for index in indices[:_NAMED]]
        others = "" if len(names) == len(indices) else f" and {len(indices) - len(names)} more"
        return (
            f"{what} in step {self.state.global_step + 1}, {where}, with the images {indices} of the training split"
            f" ({', '.join(names)}{others}): lower learning_rate, raise the warm-up or clip gradients (max_grad_norm),"
            " and look at the images"
        )

    def _clip_grad_norm(self, model: nn.Module) -> Any:
        """As in transformers, but gradients that are not finite are not scaled: all of them would be NaN then."""
        if self._has_plain_gradients:
            nn.utils.clip_grads_with_norm_(model.parameters(), self.args.max_grad_norm, norm := self._norm(model))
            return norm
        return super()._clip_grad_norm(model)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """As in transformers, once in each step; stops the run before a step that would spoil the weights."""
        if grad_norm is None and self._has_plain_gradients:
            return self._norm(model)
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if norm is not None and self.accelerator.scaler is None:  # fp16's scaler leaves out such a step by itself
            self._check_gradients(float(norm))
        return norm

    @property
    def _has_plain_gradients(self) -> bool:
        """Whole tensors, not scaled."""
        return not (self.is_fsdp_enabled or self.is_deepspeed_enabled or self.accelerator.scaler is not None)

    def _norm(self, model: nn.Module) -> torch.Tensor:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        self._check_gradients(float(norm))
        return norm

    def _check_gradients(self, norm: float) -> None:
        """Stop where the norm, which is that of all processes in each of them, is not finite."""
        if math.isfinite(norm):
            return
        where = "of all layers together"  # what is sharded is scaled by now
        if self._has_plain_gradients:
            spoilt = [name for name, each in self.bare_model.named_parameters() if not _is_finite(each.grad)]
            where = f"first in that of {spoilt[-1]}" if spoilt else "by their size"  # the last layer's are made first
        images = torch.cat(self._step_images).tolist()
        if self.args.world_size > 1:
            shares: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(shares, images)
            images = [index for share in shares for index in share]
        raise TrainingStoppedError(self._what_is_not_finite(f"the norm of the gradients is {norm}", where, images))

    def check_weights_finite(self) -> None:
        """Stop where a weight is not finite: a checkpoint of it would be gone on from again and again."""
        spoilt = next((name for name, each in self.bare_model.named_parameters() if not _is_finite(each)), None)
        if self.in_any_process(spoilt is not None):
            sentence = (
                f"{spoilt} is not finite any more after step {self.state.global_step}, and is not saved: lower"
                " learning_rate, raise the warm-up or clip gradients (max_grad_norm)"
            )
            raise TrainingStoppedError(self.said_by_one(None if spoilt is None else sentence))


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


def _is_finite(tensor: torch.Tensor | None) -> bool:
    if tensor is None:
        return True
    here = tensor.detach()
    here = here.to_local() if hasattr(here, "to_local") else here  # of a sharded one, the part of this process
    return bool(torch.isfinite(here).all())
