"""Turn a checkpoint of another ViT family into a QKViT model with the same numbers: `convert`."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...configuration.configuration_qkvit import QKViTConfig
from ...configuration.errors_qkvit import shown
from ...configuration.reasons import in_one_line
from ..pretrained_qkvit import QKViTPreTrainedModel
from .checkpoint_reader import Checkpoint, CheckpointFiles, ModelInMemory, read_config
from .families import families, family_of
from .families.family import Family, Rule, Source
from .plan import MODELS, Plan, check_tensors, is_head, kind_from, kinds_by_name, layout_of, without_prefix
from .progress import steps
from .refusals import why_not

logger = logging.getLogger(__name__)


def convert(
    source: str | Path | nn.Module,
    *,
    family: str | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
    progress: bool | None = None,
) -> QKViTPreTrainedModel:
    """A QKViT model with the weights of another ViT; its outputs are those of the source.

    Args:
        source: A local folder with config.json and weights (safetensors, or torch's .bin; in shards or not), an id on
            the Hub, or a model of transformers.
        family: Name of the family; by default the source's config.json tells.
        dtype: Data type of the weights; by default each keeps its own.
        revision: Branch, tag or commit on the Hub.
        progress: Show a progress bar: always, never, or (None) where it takes longer than two seconds.

    Returns:
        `QKViTForImageClassification` if the source has a classifier, `QKViTForMaskedImageModeling` if it has a decoder
        of the same form, or else `QKViTModel`; in eval mode. Labels come along, and the image processor's settings,
        which `save_pretrained` writes.

    Raises:
        ValueError: the source is not there, of a family that cannot be read, damaged, or its tensors are not those of
            its config; all missing, unknown and misshapen tensors are named.

    Example:

    ```python
    >>> from transformers import ViTConfig, ViTForImageClassification
    >>> size = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
    >>> theirs = ViTForImageClassification(ViTConfig(image_size=16, patch_size=4, num_labels=3, **size)).eval()
    >>> ours = convert(theirs)
    >>> pixels = torch.rand(1, 3, 16, 16)
    >>> torch.allclose(ours(pixels).logits, theirs(pixels).logits, atol=1e-5)
    True

    ```
    """
    checkpoint: Checkpoint
    if isinstance(source, nn.Module):
        if not hasattr(source, "config"):
            raise ValueError(
                f"a {type(source).__name__} has no config to read; pass a model of transformers, or a folder"
            )
        checkpoint = ModelInMemory(source)
    else:
        checkpoint = CheckpointFiles(source, revision)
    with closing(checkpoint):
        return Conversion.plan_for(checkpoint, family, dtype).model(progress)


def source_of(checkpoint: Checkpoint, family: Family) -> tuple[Source, dict[str, str], str]:
    """The checkpoint as the family's `fields` sees it; name without the prefix -> name in the file; the prefix."""
    shapes = checkpoint.shapes()
    prefix = family.prefix_of(list(shapes))
    names = without_prefix(shapes, prefix)
    config = with_defaults(family, checkpoint.config, checkpoint.where)
    return Source(config, {name: shapes[full] for name, full in names.items()}, checkpoint.where), names, prefix


def with_defaults(family: Family, config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """A config.json of theirs with what it leaves out."""
    if family.config_class is None:
        return dict(config)
    import transformers

    config_class = getattr(transformers, family.config_class)
    try:
        return {**config_class.from_dict(dict(config)).to_dict(), "architectures": config.get("architectures")}
    except Exception as error:  # of many classes, with messages of many lines
        reason = in_one_line(error)
        raise ValueError(f"config.json of {where} is no {family.config_class} ({reason}); correct it") from error


@dataclass(frozen=True)
class Conversion:
    """All that is known about a conversion before a tensor is read.

    Attributes:
        names: Name of a tensor of theirs in the plan -> in the checkpoint.
        dtype: Data type that was asked for.
    """

    checkpoint: Checkpoint
    names: Mapping[str, str]
    plan: Plan
    dtype: torch.dtype | None

    @classmethod
    def plan_for(
        cls, checkpoint: Checkpoint, family: str | None = None, dtype: torch.dtype | str | None = None
    ) -> "Conversion":
        """Find the family, the fields of our configuration and what becomes of every tensor.

        Raises:
            ValueError: as `convert` says.
        """
        asked, chosen = dtype_named(dtype), _family(checkpoint, family)
        source, names, prefix = source_of(checkpoint, chosen)
        config = QKViTConfig(**chosen.fields(source))
        layout = layout_of(chosen, names, config.num_hidden_layers)
        rules = chosen.layouts[layout]
        plan = Plan.make(rules, config, kind_from(rules, source.shapes, config))
        assert not plan.uncovered, f"the family {chosen.name} has no rule for {plan.uncovered}"
        left_out = check_tensors(checkpoint.where, chosen, plan.their_shapes(), source.shapes)
        if left_out:
            logger.warning(
                "%s: %d tensors do not come along, for QKViT has no place for them: %s",
                checkpoint.where,
                len(left_out),
                in_short(left_out),
            )
        config.converted_from = {
            **(config.converted_from or {}),
            "family": chosen.name,
            "layout": layout,
            "prefix": prefix,
            "bare": bare_modules(plan.rules, names, prefix),
        }
        found = cls(checkpoint, names, plan, asked)
        dtypes = list(found.dtypes().values())
        plan.model.config.dtype = max(set(dtypes), key=dtypes.count)
        settings: Any = checkpoint.image_processor
        if settings is None and chosen.image_processor is not None:
            settings = chosen.image_processor(source)
        plan.model.config.image_processor_settings = _of_whole_patches(settings, config.patch_shape)
        return found

    def dtypes(self) -> dict[str, torch.dtype]:
        """Name -> data type of our tensors."""
        theirs = self.checkpoint.dtypes()
        return {
            name: self.dtype or theirs[self.names[rule.theirs[0]]] for rule in self.plan.rules for name in rule.ours
        }

    def tensors(self, progress: bool | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Names and tensors of ours, read one after the other; each in memory of its own."""
        for rule in steps(self.plan.rules, "converting", progress):
            theirs = [self.checkpoint.read(self.names[name]) for name in rule.theirs]
            if self.dtype is not None:
                theirs = [tensor.to(self.dtype) for tensor in theirs]
            found = rule.to_ours(theirs, [self.plan.ours[name] for name in rule.ours])
            for name, tensor in zip(rule.ours, found, strict=True):
                yield name, _owned(tensor)

    def model(self, progress: bool | None = None) -> QKViTPreTrainedModel:
        """Our model, in eval mode."""
        model = self.plan.model
        for name, tensor in self.tensors(progress):
            path, _, last = full_name(model, name).rpartition(".")
            parameter = nn.Parameter(tensor, requires_grad=tensor.is_floating_point())
            setattr(model.get_submodule(path), last, parameter)
        model.settle()
        return model.eval()


def full_name(model: nn.Module, name: str) -> str:
    """The name of a tensor in a model of ours, which has a base model inside if it has a head."""
    return f"qkvit.{name}" if hasattr(model, "qkvit") and not is_head(name) else name


def in_short(names: Sequence[str]) -> str:
    """Names of tensors; of many that begin alike, the beginning and their number.

    Example:

    ```python
    >>> in_short(["logit_scale", *(f"decoder.{index}" for index in range(5))])
    'logit_scale, decoder.* (5)'

    ```
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.partition(".")[0], []).append(name)
    return ", ".join(
        f"{start}.* ({len(group)})" if len(group) > 4 else ", ".join(group) for start, group in groups.items()
    )


def _owned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in memory that nothing else is part of."""
    whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if whole else tensor.clone(memory_format=torch.contiguous_format)


def bare_modules(rules: Iterable[Rule], names: Mapping[str, str], prefix: str) -> str:
    """The modules of the base model that stand without the prefix in a file that has it: some files are so written."""
    base = [name for rule in rules if rule.ours and not is_head(rule.ours[0]) for name in rule.theirs]
    return " ".join(sorted({name.partition(".")[0] for name in base if prefix and names[name] == name}))


def _of_whole_patches(settings: Any, patch: tuple[int, int]) -> Any:
    """The settings of an image processor, for images that the patch divides."""
    settings = dict(settings or {})
    for name in ("size", "crop_size"):
        size = settings.get(name)
        if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
            sides = zip(("height", "width"), patch, strict=True)
            settings[name] = {**size, **{side: size[side] // unit * unit for side, unit in sides}}
    return settings or None


def dtype_named(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """The floating-point type of that name, or of its short name such as bf16; a `ValueError` if there is none."""
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    found = getattr(torch, short.get(dtype, dtype), None) if isinstance(dtype, str) else dtype
    if dtype is not None and not (isinstance(found, torch.dtype) and found.is_floating_point):
        raise ValueError(f"dtype={shown(dtype)} is no floating-point type of torch; pass dtype='bfloat16', say")
    return found


def _family(checkpoint: Checkpoint, name: str | None) -> Family:
    if name is not None:
        return family_named(name)
    found = family_of(checkpoint.config)
    if found is None:
        raise ValueError(why_not(checkpoint.config, checkpoint.where))
    return found


def family_named(name: str) -> Family:
    """The family of that name; a `ValueError` that lists them if there is none."""
    if name not in families():
        raise ValueError(f"family={name!r} is not known; pass one of {', '.join(families())}")
    return families()[name]


# ---- models that are QKViT already


def model_type_of(source: str | Path) -> str | None:
    """What the config.json of a folder or Hub id says."""
    return read_config(source).get("model_type")


def load_own(source: str | Path, dtype: torch.dtype | str | None = None) -> QKViTPreTrainedModel:
    """A saved QKViT model, of the class that it was saved as."""
    names = read_config(source).get("architectures") or ["QKViTModel"]
    found = next((MODELS[kind] for name, kind in kinds_by_name().items() if name in names), None)
    if found is None:
        raise ValueError(f"{source} is a {names[0]}; pass a folder of {', '.join(m.__name__ for m in MODELS.values())}")
    return found.from_pretrained(source, dtype=dtype_named(dtype) or "auto").eval()
