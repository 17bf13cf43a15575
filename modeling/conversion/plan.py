"""Which tensors of theirs become which of ours: a family's rules, for one checkpoint and one model.

A plan is made from names and shapes alone, before anything is read, so that all that is missing, unknown or misshapen
is told at once.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from ...configuration.configuration_qkvit import QKViTConfig
from ..modeling_qkvit import QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from ..pretrained_qkvit import QKViTPreTrainedModel
from .families.family import HEADS, Family, Rule, Shape

MODELS: dict[str, type[QKViTPreTrainedModel]] = {
    "model": QKViTModel,
    "classification": QKViTForImageClassification,
    "masked_image_modeling": QKViTForMaskedImageModeling,
}


def kinds_by_name() -> dict[str, str]:
    """Class name -> key of `MODELS`; by name, because code that came with a model is another class."""
    return {made.__name__: kind for kind, made in MODELS.items()} | {"QKViTBackbone": "model"}


def kind_of(model: nn.Module) -> str:
    """The kind of a model of ours: a key of `MODELS`."""
    names = kinds_by_name()
    kind = next((names[cls.__name__] for cls in type(model).__mro__ if cls.__name__ in names), None)
    if kind is None:
        raise ValueError(
            f"{type(model).__name__} is no QKViT model; pass one that qkvit.convert or from_pretrained of a QKViT gave"
        )
    return kind


def is_head(name: str) -> bool:
    """Whether one of our tensors' names is that of a head."""
    return name.startswith(tuple(HEADS))


def our_shapes(model: nn.Module) -> dict[str, Shape]:
    """Name -> shape of our model's tensors, without `qkvit.`."""
    return {name.removeprefix("qkvit."): tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def expanded(rules: Iterable[Rule], num_layers: int) -> Iterator[Rule]:
    """The rules with a number in the place of `{layer}`."""
    for rule in rules:
        if not any("{layer}" in name for name in (*rule.theirs, *rule.ours)):
            yield rule
            continue
        for layer in range(num_layers):
            number = partial(_numbered, layer)
            yield rule.named(number, number)


def _numbered(layer: int, name: str) -> str:
    return name.replace("{layer}", str(layer))


@dataclass(frozen=True)
class Plan:
    """Rules whose `ours` together are exactly the tensors of one model of ours, each once."""

    rules: tuple[Rule, ...]
    config: QKViTConfig
    model: QKViTPreTrainedModel  # without numbers, on the meta device
    ours: Mapping[str, Shape]
    uncovered: tuple[str, ...]

    @classmethod
    def make(cls, rules: Iterable[Rule], config: QKViTConfig, kind: str) -> "Plan":
        with torch.device("meta"), no_init_weights():
            model = MODELS[kind](config)
        ours = our_shapes(model)
        chosen = [
            rule
            for rule in expanded(rules, config.num_hidden_layers)
            if all(name in ours for name in rule.ours) and rule.holds(config)
        ]
        covered = [name for rule in chosen for name in rule.ours]
        assert len(covered) == len(set(covered)), (
            f"two rules for {sorted({n for n in covered if covered.count(n) > 1})}"
        )
        return cls(tuple(chosen), config, model, ours, tuple(name for name in ours if name not in set(covered)))

    def their_shapes(self) -> dict[str, Shape]:
        """Name -> shape of the tensors of theirs that make up our model."""
        shapes: dict[str, Shape] = {}
        for rule in self.rules:
            stand_ins = [torch.empty(self.ours[name], device="meta") for name in rule.ours]
            tensors = rule.to_theirs(stand_ins, self.config)
            shapes.update(zip(rule.theirs, (tuple(tensor.shape) for tensor in tensors), strict=True))
        return shapes


def kind_from(rules: Iterable[Rule], shapes: Mapping[str, Shape], config: QKViTConfig) -> str:
    """The kind of our model that a checkpoint becomes: that of the first head that it has the tensors of.

    A decoder of another shape than ours (its stride is not the patch) does not count.
    """
    for rule in rules:
        is_weight = bool(rule.ours) and is_head(rule.ours[0]) and rule.ours[0].endswith(".weight")
        if not (is_weight and rule.holds(config) and all(name in shapes for name in rule.theirs)):
            continue
        kind = next(kind for start, kind in HEADS.items() if rule.ours[0].startswith(start))
        if kind == "masked_image_modeling" and rule.shape is not None:
            (theirs,) = rule.theirs
            if tuple(rule.shape(config)) != tuple(shapes[theirs]):
                continue
        return kind
    return "model"


def layout_of(family: Family, names: Iterable[str], num_layers: int) -> str:
    """The layout of the family of which most names are there."""
    present = set(names)

    def count(layout: str) -> int:
        return sum(name in present for rule in expanded(family.layouts[layout], num_layers) for name in rule.theirs)

    return max(family.layouts, key=count)  # the first of equals


def without_prefix(names: Mapping[str, Any], prefix: str) -> dict[str, str]:
    """Name without the prefix -> name in the file."""
    return {name.removeprefix(prefix) if prefix else name: name for name in names}


def check_tensors(
    where: str, family: Family, needed: Mapping[str, Shape], found: Mapping[str, Shape]
) -> tuple[str, ...]:
    """The names that do not come along, if everything else is as it has to be.

    Raises:
        ValueError: tensors are missing, misshapen or unknown; all of them are named.
    """
    missing = [name for name in needed if name not in found]
    misshapen = [
        f"{name} is {_shape(found[name])} instead of {_shape(shape)}"
        for name, shape in needed.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    others = [name for name in found if name not in needed]
    left_out = tuple(name for name in others if any(re.match(pattern, name) for pattern in family.left_out))
    unknown = [name for name in others if name not in left_out]
    faults = [
        f"{label}: {', '.join(names)}"
        for label, names in (("missing", missing), ("misshapen", misshapen), ("unknown", unknown))
        if names
    ]
    if faults:
        raise ValueError(
            f"{where} does not hold the tensors of a {family.name!r} model as its config describes it"
            f" ({'; '.join(faults)}); check that weights and config belong together"
        )
    return left_out


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape)) or "a number"
