"""Write a QKViT model as a checkpoint of another ViT family, with the same numbers: `export`."""

import copy
import dataclasses
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from ...configuration.configuration_qkvit import QKViTConfig
from ...configuration.preprocessing_qkvit import FILE_NAME, default_image_processor, settings_of
from ..whole_folder import whole_folder
from .families import families
from .families.family import Family, Source
from .importing import dtype_named, family_named, with_defaults
from .plan import Plan, is_head, kind_of
from .progress import steps

# What a family need not have a place for: it acts in training alone, or in QKViTBackbone, or is no choice at all.
_FREE = frozenset(
    {
        "apply_layernorm",
        "attention_probs_dropout_prob",
        "classification_loss",
        "converted_from",
        "drop_path_rate",
        "hidden_dropout_prob",
        "initializer_range",
        "label_smoothing",
        "patch_drop_rate",
        "position_float32",
        "reshape_hidden_states",
    }
)


def export(
    model: nn.Module,
    folder: str | Path,
    *,
    family: str | None = None,
    layout: str | None = None,
    force: bool = False,
    progress: bool | None = None,
) -> Path:
    """Write a model as a checkpoint of a family: config.json, model.safetensors and preprocessor_config.json.

    Args:
        model: A QKViT model.
        folder: Where to write; it appears when all of it is there.
        family: Name of the family; by default the one that the model was converted from.
        layout: How tensors are named, for families that know several ways: "transformers-4", which transformers 5 reads
            and writes too, or "transformers-5", the names that it has in memory. By default as the model's source had
            them, or else the first.
        force: Replace the model that is in the folder.
        progress: Show a progress bar: always, never, or (None) where it takes longer than two seconds.

    Returns:
        The folder.

    Raises:
        ValueError: the family has no place for a part of the model, or the folder is not empty.

    Example:

    ```python
    >>> from transformers import AutoModel
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> ours = QKViTModel(QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)).eval()
    >>> theirs = AutoModel.from_pretrained(export(ours, "as_vit", family="vit"), add_pooling_layer=False)
    >>> pixels = torch.rand(1, 3, 32, 32)
    >>> torch.allclose(theirs(pixels).last_hidden_state, ours(pixels).last_hidden_state, atol=1e-5)
    True

    ```
    """
    kind = kind_of(model)
    config = _own_config(model)
    chosen = _family(config, family)
    layout = _layout(config, chosen, layout)
    plan, theirs = _plan(chosen, layout, config, kind)
    naming = _naming(config, chosen, kind)
    with whole_folder(folder, force) as part:
        save_file(_tensors(model, plan, naming, progress), part / "model.safetensors", metadata={"format": "pt"})
        (part / "config.json").write_text(_config_text(chosen, theirs), encoding="utf-8")
        settings = settings_of(model.config) or default_image_processor(model.config).to_dict()
        if chosen.model_types:
            (part / FILE_NAME).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return Path(folder)


def _own_config(model: Any) -> QKViTConfig:
    """The model's configuration, of our own class, with what the model was made with beside it."""
    config = QKViTConfig.from_dict(model.config.to_dict())
    base = getattr(model, "qkvit", model)
    config.use_mask_token = base.embeddings.mask_token is not None
    if base.pooler is None:
        config.pooler_act = config.pooler_size = None
    config.dtype = next(model.parameters()).dtype
    config.image_processor_settings = settings_of(model.config)
    return config


def check_choices(family: str | None, layout: str | None = None, dtype: str | None = None) -> None:
    """Refuse a family, layout or data type of no known name before anything is read; `ValueError` lists them."""
    dtype_named(dtype)
    if family is not None:
        _check_layout(family_named(family), layout)


def _family(config: QKViTConfig, name: str | None) -> Family:
    name = name or (config.converted_from or {}).get("family")
    if name is None:
        raise ValueError(f"family was not given, and the model was not converted; pass one of {', '.join(families())}")
    return family_named(name)


def _check_layout(family: Family, layout: str | None) -> None:
    if layout is not None and layout not in family.layouts:
        raise ValueError(
            f"layout={layout!r} is not known to the family {family.name!r}; pass one of {', '.join(family.layouts)}"
        )


def _layout(config: QKViTConfig, family: Family, layout: str | None) -> str:
    _check_layout(family, layout)
    return layout or _remembered(config, family, "layout") or next(iter(family.layouts))


def _naming(config: QKViTConfig, family: Family, kind: str) -> Callable[[str], str]:
    """From the name of a tensor of their base model to the name in the file."""
    prefix = _remembered(config, family, "prefix")
    # Beside a head that was added later, the base model's tensors have to have a prefix.
    if prefix is None or (not prefix and kind != "model"):
        prefix = family.prefix_for(kind)
    bare = (_remembered(config, family, "bare") or "").split()
    return lambda name: name if name.partition(".")[0] in bare else prefix + name


def _remembered(config: QKViTConfig, family: Family, what: str) -> str | None:
    source = config.converted_from or {}
    return source.get(what) if source.get("family") == family.name else None


def _plan(family: Family, layout: str, config: QKViTConfig, kind: str) -> tuple[Plan, dict[str, Any]]:
    """The plan, and their config.json; a `ValueError` says what the family has no place for."""
    plan, theirs, faults = _attempt(family, layout, config, kind)
    if plan is None or faults:
        others = [other.name for other in families().values() if _fits(other, config, kind)]
        way_out = f"export to {' or '.join(others)} instead" if others else "save it with save_pretrained instead"
        raise ValueError(f"the family {family.name!r} has no place for {', '.join(faults)}; {way_out}")
    return plan, theirs


def _fits(family: Family, config: QKViTConfig, kind: str) -> bool:
    try:
        return not _attempt(family, next(iter(family.layouts)), config, kind)[2]
    except ValueError:
        return False


def _attempt(
    family: Family, layout: str, config: QKViTConfig, kind: str
) -> tuple[Plan | None, dict[str, Any], list[str]]:
    """Plan, their config and what does not fit: found by reading what would be written."""
    if kind not in family.architectures:
        return None, {}, [f"a head for {kind.replace('_', ' ')}"]
    plan = Plan.make(family.layouts[layout], config, kind)
    # Without labels there is no classifier, and what pools would be taken for that of a base model.
    judged, shapes = config, plan.their_shapes()
    if kind == "classification" and not config.num_labels:
        judged = copy.deepcopy(config)
        judged.num_labels = 2
        shapes = Plan.make(family.layouts[layout], judged, kind).their_shapes()
    written: dict[str, Any] = {
        "architectures": [family.architectures[kind]],
        "model_type": family.model_types[0] if family.model_types else None,
        **family.source_config(config, kind),
    }
    theirs = with_defaults(family, {name: value for name, value in written.items() if value is not None}, "the model")
    if family.model_types:
        theirs["dtype"] = str(config.dtype).removeprefix("torch.")
    read = QKViTConfig(**family.fields(Source(theirs, shapes, "what would be written")))
    return plan, theirs, _differences(judged, read, kind) or list(plan.uncovered)


def _differences(ours: QKViTConfig, read: QKViTConfig, kind: str) -> list[str]:
    """The choices of our configuration that are lost, with what they would be."""
    kept, there = _choices(ours, kind), _choices(read, kind)
    lost = [name for name in kept if kept[name] != there[name]]
    told = [name for name in lost if getattr(ours, name) != getattr(read, name)]  # not what only follows from another
    return [f"{name}={getattr(ours, name)!r} (there {getattr(read, name)!r})" for name in told or lost]


def _choices(config: QKViTConfig, kind: str) -> dict[str, Any]:
    """The choices that the outputs depend on, in a form that is the same for the same model."""
    own = inspect.get_annotations(QKViTConfig).keys() & {field.name for field in dataclasses.fields(QKViTConfig)}
    names = [name for name in sorted(own - _FREE) if not name.startswith("_")]
    choices: dict[str, Any] = {name: getattr(config, name) for name in names}
    choices.update(image_size=config.image_shape, patch_size=config.patch_shape)
    choices["layer_scale_init_value"] = config.layer_scale_init_value is not None
    choices["position_coverage"] = config.num_placed_tokens
    choices["pooler_size"] = None if config.pooler_act is None else config.pooled_size
    choices["pooling_coverage"] = "all" if config.pools_prefix else "patches"
    if config.pooling == "class" or not config.num_prefix_tokens:
        choices["pooling_coverage"] = None
    if config.position_embedding != "learned":
        for name in ("position_coverage", "position_antialias"):
            choices[name] = None
    if config.position_embedding != "rope2d":
        choices["rope_theta"] = None
    if not config.use_distillation_token or kind != "classification":
        choices["use_distillation_classifier"] = None
    if kind == "masked_image_modeling":
        for name in ("pooling", "pooling_coverage", "pooler_act", "pooler_size", "use_mask_token"):
            choices[name] = None
    return choices


def _config_text(family: Family, theirs: dict[str, Any]) -> str:
    """config.json, without what their class takes for granted."""
    if family.config_class is None:
        return json.dumps(theirs, indent=2, sort_keys=True) + "\n"
    import transformers

    return getattr(transformers, family.config_class).from_dict(theirs).to_json_string()


def _tensors(
    model: nn.Module, plan: Plan, naming: Callable[[str], str], progress: bool | None
) -> dict[str, torch.Tensor]:
    ours = {name.removeprefix("qkvit."): tensor for name, tensor in model.state_dict().items()}
    lacking = sorted(plan.ours.keys() - ours.keys())
    if lacking:
        raise ValueError(f"the model lacks {', '.join(lacking)}, which its config states; pass a whole model")
    tensors: dict[str, torch.Tensor] = {}
    for rule in steps(plan.rules, "exporting", progress):
        own = [ours[name].detach().cpu() for name in rule.ours]
        head = bool(rule.ours) and is_head(rule.ours[0])
        for name, tensor in zip(rule.theirs, rule.to_theirs(own, plan.config), strict=True):
            tensors[name if head else naming(name)] = tensor.contiguous()
    return tensors
