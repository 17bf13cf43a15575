"""The part of the Trainer that knows FSDP2 and DeepSpeed: what they need, what they cannot do, saving, loading."""

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME

from ...modeling.tensor_digest import tensor_digest
from ..checkpoints import sealed_facts
from ..errors import TrainingRefusedError
from .sharded import load_whole_optimizer_state, whole_optimizer_state, whole_state_dict
from .world import in_any_process


class ShardedTrainer(Trainer):
    """A `Trainer` whose checkpoints and finished models are those of one process, however the parameters are kept.

    Raises:
        TrainingRefusedError: FSDP or DeepSpeed is asked for and is not there (accelerate leaves it out on a CPU without
            a word), or would go wrong without a word.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled:
            settle_fsdp(self.accelerator.state.fsdp_plugin, self.bare_model)

    average_decay: float | None = None  # of the average of the weights, if one is kept

    def create_accelerator_and_postprocess(self) -> None:
        """As in transformers; then refuse what was asked for and is not there, before anything is written."""
        super().create_accelerator_and_postprocess()
        for name, there in (("FSDP", self.is_fsdp_enabled), ("DeepSpeed", self.is_deepspeed_enabled)):
            if asked_for() == name and not there:
                device = self.args.device.type.upper()
                raise TrainingRefusedError(
                    f"{name} is asked for, and on the {device} accelerate would train without it: start it on GPUs, or"
                    " without that configuration file"
                )
        if self.is_deepspeed_enabled and self.average_decay is not None:
            raise TrainingRefusedError(
                "average_decay is not for DeepSpeed, whose weights are in parts or in bf16: use FSDP2 or DDP, or leave"
                " average_decay out"
            )

    @property
    def bare_model(self) -> Any:
        """The model itself, without what accelerate or the compiler put around it."""
        return self.accelerator.unwrap_model(self.model, keep_torch_compile=False)

    @property
    def sharded(self) -> bool:
        """Whether a forward pass needs every process, because each holds a part of the parameters."""
        return self.is_fsdp_enabled or (
            self.is_deepspeed_enabled and self.accelerator.state.deepspeed_plugin.zero_stage == 3
        )

    def in_any_process(self, here: bool) -> bool:
        """Whether it is so in any process, where one cannot act without the others; otherwise whether it is so here."""
        return in_any_process(here, self.args.device, self.args.world_size if self.sharded else 1)

    def said_by_one(self, sentence: str | None) -> str | None:
        """The sentence of the first process that has one, where all have come here together."""
        if not self.sharded or self.args.world_size == 1:
            return sentence
        said: list[str | None] = [None] * self.args.world_size
        torch.distributed.all_gather_object(said, sentence)
        return next((each for each in said if each is not None), None)

    def whole_weights(self) -> dict[str, torch.Tensor]:
        """The model's state dictionary, whole, on the process that saves (elsewhere empty); all processes must ask."""
        return whole_state_dict(self.bare_model, keep=self.args.should_save)

    # ---- saving

    def save_whole(self, folder: str | Path) -> None:
        """The model, its code and its image processor; all processes must ask, one writes."""
        weights = self.whole_weights()
        if self.args.should_save:
            self.bare_model.save_pretrained(folder, state_dict=weights)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As in transformers, with whole tensors in safetensors."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            self.save_whole(output_dir or str(self.args.output_dir))
        else:
            super().save_model(output_dir, _internal_call)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            return super()._save_optimizer_and_scheduler(output_dir)
        state, scheduler = whole_optimizer_state(self.optimizer, keep=self.args.should_save), self.lr_scheduler
        if self.args.should_save and scheduler is not None:
            torch.save(state, Path(output_dir, OPTIMIZER_NAME))
            torch.save(scheduler.state_dict(), Path(output_dir, SCHEDULER_NAME))
        return None

    # ---- loading

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not self.is_fsdp_enabled:
            if checkpoint is not None and self.is_deepspeed_enabled:
                facts = sealed_facts(Path(checkpoint)) if self.args.should_save else None
                self._check_weights(Path(checkpoint), facts)  # DeepSpeed has loaded them by itself
            return super()._load_optimizer_and_scheduler(checkpoint)
        scheduler: Any = self.lr_scheduler
        saved = torch.load(Path(checkpoint, OPTIMIZER_NAME), map_location="cpu", weights_only=True, mmap=True)
        load_whole_optimizer_state(self.optimizer, saved)
        scheduler.load_state_dict(torch.load(Path(checkpoint, SCHEDULER_NAME), weights_only=True))
        return None

    def _check_weights(self, folder: Path, facts: dict[str, Any] | None) -> None:
        """Refuse weights that are not those that were sealed, to the bit; all processes must ask, one compares."""
        weights = self.whole_weights()
        if self.args.should_save and facts is not None and tensor_digest(weights.items()) != facts["weights"]:
            raise TrainingRefusedError(f"the weights loaded from {folder} are not those that were saved; report this")


def asked_for() -> str | None:
    """What the launcher asks for: "FSDP", "DeepSpeed" or None."""
    for name, variable in (("FSDP", "ACCELERATE_USE_FSDP"), ("DeepSpeed", "ACCELERATE_USE_DEEPSPEED")):
        if os.environ.get(variable, "false").lower() in ("1", "true", "yes", "on"):
            return name
    return None


def said_of_sharing(processes: int) -> list[str]:
    """What the memory of a plan does not show."""
    asked = asked_for()
    if asked is None:
        return []
    parts = {
        "3": "weights, gradients, optimizer and average",
        "2": "gradients and optimizer",
        "1": "optimizer",
    }[os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2") if asked == "DeepSpeed" else "3"]
    return [f"{asked} is asked for: {parts} take 1/{processes} of that memory."]


def settle_fsdp(plugin: Any, model: nn.Module) -> None:
    """Set what FSDP2 needs for a vision transformer, before accelerate cuts it.

    Args:
        plugin: accelerate's `FullyShardedDataParallelPlugin`; it is changed.

    Raises:
        TrainingRefusedError: it asks for FSDP1, or for activation checkpointing that would draw dropout twice.
    """
    if plugin.fsdp_version != 2:
        raise TrainingRefusedError("the first version of FSDP is not supported: write fsdp_version: 2")
    if plugin.activation_checkpointing:
        raise TrainingRefusedError(
            "fsdp_activation_checkpointing would draw other dropout masks in the backward pass: use"
            " --set gradient_checkpointing=true in its place"
        )
    plugin.transformer_cls_names_to_wrap = layer_classes(model)
    # Each process makes the whole model before it is cut: weights are averaged and compared before that too.
    plugin.cpu_ram_efficient_loading = False
    os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
    policy = plugin.mixed_precision_policy
    if policy is not None:  # gradients are summed in float32, as with DDP
        kind: Any = type(policy)
        plugin.mixed_precision_policy = kind(
            param_dtype=policy.param_dtype, reduce_dtype=torch.float32, output_dtype=policy.output_dtype
        )
    # torch warns of each layer whose output is a view; nothing writes into such outputs here.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


def layer_classes(model: nn.Module) -> list[str]:
    """The classes whose modules become units of FSDP2: those that may not be split, but for the embeddings.

    accelerate makes a unit of the input embedding too, and fails where that already is inside one.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTForImageClassification
    >>> layer_classes(QKViTForImageClassification(QKViTConfig(hidden_size=8, num_attention_heads=2)))
    ['QKViTLayer']

    ```
    """
    embedding: Any = getattr(model, "get_input_embeddings", lambda: None)()
    names: Any = getattr(model, "_no_split_modules", None) or ()
    units = [module for module in model.modules() if type(module).__name__ in names]
    return sorted({type(unit).__name__ for unit in units if all(each is not embedding for each in unit.modules())})
