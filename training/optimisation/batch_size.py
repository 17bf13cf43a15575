"""Looking for a micro-batch that fits into memory, with the global batch as it is.

Trainer's own `auto_find_batch_size` lowers the batch, and with it the recipe: steps, schedule and noise of the gradient
change. Here the micro-batch is halved and the accumulation doubled, so a step has the same images in the same order,
the same pairs are mixed, and the gradient is the same mean up to rounding. Dropout is drawn for each micro-batch, so
its masks change, unless `dropout_by_image` is set.

Tried is a pass forward and backward of each process without the others, beside memory for all that a step will need: a
process that fails in the middle of a step would leave the others waiting. All take the smallest that one of them needs.
"""

from collections.abc import Callable
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from transformers import TrainingArguments

from ..errors import TrainingRefusedError
from ..images.progressive import allow_sizes
from ..processes.sharded_trainer import asked_for
from ..processes.world import in_any_process
from ..recipe import Recipe


def find_batch_size(
    recipe: Recipe,
    args: TrainingArguments,
    model: nn.Module,
    size: tuple[int, int],
    *,
    teacher: Callable[[torch.Tensor], Any] | None = None,
    before: dict[str, Any] | None = None,
) -> None:
    """Lower `args.per_device_train_batch_size` and raise `args.gradient_accumulation_steps` until a micro-batch fits.

    Args:
        model: Is moved to the device; its weights and buffers stay.
        size: (height, width) of the images.
        teacher: Asked in each step.
        before: The plan of the run that goes on: what is tried first is no larger than its micro-batch. The global
            batch is always the recipe's, which may have changed.

    Raises:
        TrainingRefusedError: not even the smallest fits.
    """
    _check()
    if recipe.data.progressive:
        allow_sizes(model)
        largest = max(int(pixels) for _, pixels in recipe.data.progressive)
        size = (max(size[0], largest), max(size[1], largest))
    model.to(args.device)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable(args.gradient_checkpointing_kwargs)  # type: ignore[operator]
    copies = 3 + (recipe.optimisation.average_decay is not None) + (args.world_size > 1)
    mixes = bool(recipe.augmentation.mixup or recipe.augmentation.cutmix)
    known = (before or {}).get("micro_batch") or args.per_device_train_batch_size
    while args.per_device_train_batch_size > known and not args.per_device_train_batch_size % (4 if mixes else 2):
        _halve(args)
    while in_any_process(not _fits(model, args, size, copies, teacher), args.device, args.world_size):
        batch = args.per_device_train_batch_size
        if batch % (4 if mixes else 2):
            why = "mixed in pairs, it cannot be halved" if mixes and not batch % 2 else "it cannot be halved"
            raise TrainingRefusedError(
                f"memory does not suffice for a micro-batch of {batch}, and {why}: set bf16 or gradient_checkpointing,"
                " or take a smaller model"
            )
        _halve(args)


def _halve(args: TrainingArguments) -> None:
    args.per_device_train_batch_size //= 2
    args.gradient_accumulation_steps *= 2


def out_of_memory(args: TrainingArguments) -> str:
    """The sentence about memory that did not suffice in the middle of a run."""
    return (
        f"memory does not suffice for micro-batches of {args.per_device_train_batch_size}: train anew with"
        " find_batch_size, or lower per_device_train_batch_size and raise the accumulation by the same factor"
    )


def _check() -> None:
    sharded = asked_for()
    if sharded:
        raise TrainingRefusedError(
            f"find_batch_size does not see what {sharded} will need: leave it out and set per_device_train_batch_size"
        )


def _fits(
    model: nn.Module,
    args: TrainingArguments,
    size: tuple[int, int],
    copies: int,
    teacher: Callable[[torch.Tensor], Any] | None,
) -> bool:
    """Whether a pass fits beside so many copies of the trained weights (the optimiser's numbers and some room)."""
    config: Any = model.config
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    dtype = torch.bfloat16 if args.bf16 else torch.float16
    model.train()
    try:
        with torch.random.fork_rng(devices=[]):
            held = [torch.empty_like(each) for each in model.parameters() if each.requires_grad for _ in range(copies)]
            shape = (args.per_device_train_batch_size, getattr(config, "num_channels", 3), *size)
            pixels = torch.zeros(shape, device=args.device)
            with torch.autocast(args.device.type, dtype=dtype, enabled=args.bf16 or args.fp16):
                loss = model(pixel_values=pixels).logits.float().square().mean()
            if teacher is not None:
                teacher(pixels)
            loss.backward()
        del held
        return True
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
            raise
        return False
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, buffer in model.named_buffers():
                buffer.copy_(buffers[name])
        if args.device.type == "cuda":
            torch.cuda.empty_cache()
