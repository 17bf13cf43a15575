"""The optimiser of a recipe: LAMB, Muon, or any class that transformers' `optim` names."""

from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from ...configuration.reasons import in_one_line
from ..errors import TrainingRefusedError
from ..recipe import Optimisation
from .lamb import Lamb
from .muon import MuonWithAdamW
from .parameter_groups import check_layers, parameter_groups


def make_optimizer(model: nn.Module, settings: Optimisation, args: TrainingArguments) -> torch.optim.Optimizer:
    """With the groups of `parameter_groups`."""
    kind, options = optimizer_class(model, settings, args)
    groups = parameter_groups(model, settings, args.learning_rate, args.weight_decay)
    for group in groups:
        group.pop("names")
    return kind(groups, **options)


def optimizer_class(model: nn.Module, settings: Optimisation, args: TrainingArguments) -> tuple[Any, dict[str, Any]]:
    """The class, and what it wants besides the groups.

    "lion_32bit" and other names of bitsandbytes need that package.

    Raises:
        TrainingRefusedError: its package is missing, it makes groups of its own, or see `check_layers`.
    """
    if settings.layer_decay is not None:
        check_layers(model)
    adam = {"lr": args.learning_rate, "betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    asked = [each.partition("=")[0].strip() for each in (args.optim_args or "").split(",") if each.strip()]
    if asked and settings.optimizer in ("lamb", "muon"):
        raise TrainingRefusedError(f"optim_args={args.optim_args} is not for {settings.optimizer}, which takes none")
    if settings.optimizer == "lamb":
        return Lamb, adam
    if settings.optimizer == "muon":
        return MuonWithAdamW, adam
    name = getattr(args.optim, "value", args.optim)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    except (ImportError, ValueError) as error:
        reason = in_one_line(error)
        raise TrainingRefusedError(
            f"optim={name} cannot be used here: {reason}; or choose adamw_torch_fused"
        ) from error
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise TrainingRefusedError(f"optim={name} makes groups of its own; choose adamw_torch_fused, say")
    for each in asked:
        if each not in options:  # transformers passes over it
            raise TrainingRefusedError(
                f"optim_args={args.optim_args}: {each} is not taken from there by {name}; leave it out, or write"
                " it as a setting of its own where there is one"
            )
    return kind, options
