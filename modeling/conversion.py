"""Turn a checkpoint of another ViT family into a QKViT model with the same numbers: `convert`."""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..configuration.configuration_qkvit import QKViTConfig
from ..configuration.errors_qkvit import shown
from .checkpoint_reader import Checkpoint, CheckpointFiles, ModelInMemory, read_config
from .conversion_plan import MODELS, Plan, check_tensors, is_head, kind_from, layout_of, without_prefix
from .conversion_progress import steps
from .conversion_refusals import why_not
from .families import families, family_of
from .families.family import Family, Rule, Source, whole_patches
from .modeling_qkvit import QKViTPreTrainedModel

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
    try:
        return _converted(checkpoint, _family(checkpoint, family), _dtype(dtype), progress)
    finally:
        checkpoint.close()


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
        reason = " ".join(str(error).split())
        raise ValueError(f"config.json of {where} is no {family.config_class} ({reason}); correct it") from error


def _converted(
    checkpoint: Checkpoint, family: Family, dtype: torch.dtype | None, progress: bool | None
) -> QKViTPreTrainedModel:
    source, names, prefix = source_of(checkpoint, family)
    config = QKViTConfig(**family.fields(source))
    layout = layout_of(family, names, config.num_hidden_layers)
    rules = family.layouts[layout]
    kind = kind_from(rules, source.shapes, config)
    plan = Plan.make(rules, config, kind)
    assert not plan.uncovered, f"the family {family.name} has no rule for {plan.uncovered}"
    left_out = check_tensors(checkpoint.where, family, plan.their_shapes(), source.shapes)
    if left_out:
        logger.warning(
            "%s: %d tensors do not come along, for QKViT has no place for them: %s",
            checkpoint.where,
            len(left_out),
            ", ".join(left_out),
        )
    named = {"family": family.name, "layout": layout, "prefix": prefix}
    config.converted_from = {**(config.converted_from or {}), **named}
    config.converted_from["bare"] = bare_modules(plan.rules, names, prefix)

    model = plan.model
    for rule in steps(plan.rules, "converting", progress):
        theirs = [_cast(checkpoint.read(names[name]), dtype) for name in rule.theirs]
        for name, tensor in zip(rule.ours, rule.to_ours(theirs, [plan.ours[name] for name in rule.ours]), strict=True):
            _put(model, name, tensor)
    _finish(model, checkpoint, family, source)
    return model


def bare_modules(rules: Iterable[Rule], names: Mapping[str, str], prefix: str) -> str:
    """The modules of the base model that stand without the prefix in a file that has it: some files are so written."""
    base = [name for rule in rules if rule.ours and not is_head(rule.ours[0]) for name in rule.theirs]
    return " ".join(sorted({name.partition(".")[0] for name in base if prefix and names[name] == name}))


def _cast(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None else tensor.to(dtype)


def _put(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Make `tensor` the parameter of that name."""
    base = model.get_submodule("qkvit") if hasattr(model, "qkvit") and not is_head(name) else model
    path, _, last = name.rpartition(".")
    own = tensor if tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    setattr(base.get_submodule(path), last, nn.Parameter(own, requires_grad=own.is_floating_point()))


def _finish(model: QKViTPreTrainedModel, checkpoint: Checkpoint, family: Family, source: Source) -> None:
    dtypes = [parameter.dtype for parameter in model.parameters()]
    model.config.dtype = max(set(dtypes), key=dtypes.count)
    settings: Any = checkpoint.image_processor
    if settings is None and family.image_processor is not None:
        settings = family.image_processor(source)
    model.config.image_processor_settings = _of_whole_patches(settings, model.config.patch_shape)
    if hasattr(model, "settle"):
        model.settle()
    model.eval()


def _of_whole_patches(settings: Any, patch: tuple[int, int]) -> Any:
    """The settings of an image processor, for images that the patch divides."""
    settings = dict(settings or {})
    for name in ("size", "crop_size"):
        size = settings.get(name)
        if isinstance(size, Mapping) and {"height", "width"} <= size.keys():
            sides = whole_patches((size["height"], size["width"]), patch)
            settings[name] = {**size, **dict(zip(("height", "width"), sides, strict=True))}
    return settings or None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
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
    found = next((model for model in MODELS.values() if model.__name__ in names), None)
    if found is None:
        raise ValueError(f"{source} is a {names[0]}; pass a folder of {', '.join(m.__name__ for m in MODELS.values())}")
    return found.from_pretrained(source, dtype=_dtype(dtype) or "auto").eval()
