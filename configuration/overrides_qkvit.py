"""Fields given on loading a configuration, laid over those of its file before anything is checked."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from .validation_qkvit import labels_agree

_LABELS = ("num_labels", "id2label", "label2id")
_STAGES = ("out_features", "out_indices")
# Fields that are filled in where they are None, and those that they follow from.
_FOLLOWS = {
    "head_dim": ("hidden_size", "num_attention_heads"),
    "hidden_act": ("mlp_type",),
    "intermediate_size": ("hidden_size", "mlp_type"),
    "pooler_size": ("hidden_size", "pooling", "pooler_act"),
}


def is_override(config_class: Any, name: str) -> bool:
    """Whether an argument of loading is a field; `dtype` is seen to by transformers."""
    fields = {*config_class.__dataclass_fields__, *_LABELS, *_STAGES} - {"dtype"}
    return name in fields and not name.startswith("_")


def with_overrides(config_class: Any, saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A file's fields with those that the caller gave; what followed from others in the file follows them again."""
    fields = _with_labels(saved, {name: given[name] for name in _LABELS if name in given})
    if not given.keys().isdisjoint(_STAGES):  # one is the other's names or indices
        fields = {name: value for name, value in fields.items() if name not in _STAGES}
    for name, origins in _FOLLOWS.items():
        if not given.keys().isdisjoint(origins):
            with suppress(ValueError):  # in the file it does not follow: heads that do not divide the width, say
                if getattr(config_class(**{**saved, name: None}), name) == saved.get(name):
                    fields[name] = None
    return {**fields, **given}


def _with_labels(saved: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """A file's fields with the labels that the caller gave: other labels than the file's replace them all."""
    id2label, label2id = saved.get("id2label"), saved.get("label2id")
    fields = dict(saved)
    count = 2 if id2label is None else len(id2label) if isinstance(id2label, Mapping) else None
    if "id2label" in given or "label2id" in given or given.get("num_labels", count) != count:
        for name in _LABELS:
            fields.pop(name, None)
    elif isinstance(id2label, Mapping) and isinstance(label2id, Mapping) and not labels_agree(id2label, label2id):
        del fields["label2id"]  # id2label was set later, by itself, on the model that was saved
    return {**fields, **given}
