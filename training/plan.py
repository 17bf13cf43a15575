"""What a run is going to do, in numbers, before it does it."""

import math
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import TrainingArguments

from .cost import forward_flops, memory_estimate, training_flops
from .images.progressive import Progression
from .optimisation.optimizers import optimizer_class
from .optimisation.parameter_groups import parameter_groups
from .optimisation.schedule import schedule_steps
from .recipe import Optimisation, Recipe


@dataclass
class Plan:
    """The numbers of a run.

    Args:
        flops, training_flops: Of one image's forward pass, and of forward and backward pass.
        micro_batch, accumulation: Images of one process at once, and how often in a step.
        memory: Bytes on one process, by what they are for.
        steps, steps_per_epoch, warmup_steps: Optimisation steps.
        left_out: Images that fill no whole global batch, in each epoch.
        size: (height, width) of the images; `progression`: by epoch, where it changes.
    """

    parameters: int
    trained: int
    flops: int
    training_flops: int
    memory: dict[str, int]
    processes: int
    global_batch: int
    images: int
    classes: int
    steps: int
    steps_per_epoch: int
    warmup_steps: int
    left_out: int
    size: tuple[int, int]
    micro_batch: int
    accumulation: int
    progression: Progression | None = None

    def lines(self) -> list[str]:
        """For the screen."""
        total = sum(self.memory.values())
        parts = ", ".join(f"{name} {_bytes(count)}" for name, count in self.memory.items() if count)
        operations = self.training_flops * self.steps * self.global_batch
        return [
            f"data        {self.images:,} images, {self.classes} classes, {self._sizes()}",
            f"parameters  {self.parameters:,}, of which {self.trained:,} are trained",
            f"operations  {_decimal(self.flops)}FLOPs forward an image; about {_decimal(operations)}FLOPs in all",
            f"processes   {self.processes}, global batch of {self.global_batch}",
            f"steps       {self.steps:,}, {self.steps_per_epoch:,} an epoch ({self.left_out} images left out of each),"
            f" {self.warmup_steps:,} of warm-up{self._without_end()}",
            f"memory      about {_bytes(total)} a process in float32: {parts}",
        ]

    def _without_end(self) -> str:
        return ": the learning rate only rises" if self.warmup_steps >= self.steps else ""

    def _sizes(self) -> str:
        if self.progression is None:
            return f"{self.size[0]} x {self.size[1]} pixels"
        return "pixels: " + ", ".join(
            f"{high} x {wide} from epoch {first}" for first, (high, wide) in self.progression.stages
        )


def make_plan(
    recipe: Recipe, args: TrainingArguments, model: nn.Module, size: tuple[int, int], images: int, classes: int
) -> Plan:
    """Reckon. One image goes through the model: twice to count operations, once to see what its activations weigh."""
    processes = recipe.processes or args.world_size
    batch, accumulation = args.per_device_train_batch_size, args.gradient_accumulation_steps
    global_batch = batch * accumulation * processes
    per_epoch = images // global_batch
    steps = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * per_epoch)
    return Plan(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trained=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        flops=forward_flops(model, size),
        training_flops=training_flops(model, size),
        memory=memory_estimate(
            model,
            size,
            batch,
            averaged=recipe.optimisation.average_decay is not None,
            moments=kept_numbers(model, recipe.optimisation, args),
        ),
        processes=processes,
        global_batch=global_batch,
        images=images,
        classes=classes,
        steps=steps,
        steps_per_epoch=per_epoch,
        warmup_steps=schedule_steps(args, recipe.optimisation, max(steps, 1), per_epoch)[0],
        left_out=images - per_epoch * global_batch,
        size=size,
        micro_batch=batch,
        accumulation=accumulation,
    )


def kept_numbers(model: nn.Module, settings: Optimisation, args: TrainingArguments) -> int:
    """How many numbers the optimiser keeps, its moments of all trained weights; of Adafactor, at the most."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    if settings.optimizer == "muon":  # one for a matrix, AdamW's two for the rest
        groups = parameter_groups(model, settings, args.learning_rate, args.weight_decay)
        matrices = [parameter for group in groups if group["matrices"] for parameter in group["params"]]
        return 2 * trained - sum(parameter.numel() for parameter in matrices)
    name: Any = getattr(args.optim, "value", args.optim)
    if name == "sgd":
        return trained if optimizer_class(model, settings, args)[1].get("momentum") else 0
    return {"lion_32bit": trained, "adafactor": trained}.get(str(name), 2 * trained)


def _bytes(count: float) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**29 else f"{count / 2**20:.1f} MiB"


def _decimal(count: float) -> str:
    for factor, prefix in ((1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{count / factor:.3g} {prefix}"
    return f"{count:.3g} "
