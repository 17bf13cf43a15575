r"""What a checkpoint family is, and how a file of this folder is written.

A family is ONE file with one object `FAMILY`. Deleting the file deletes the family: `families/__init__.py` finds them.

```
FAMILY = Family(
    name="vit",                                  # of `--to`, and of export(family=...)
    model_types=("vit",),                        # of the config.json that it reads
    config_class="ViTConfig",                    # fills in what that file leaves out; None where transformers has none
    prefixes=("vit.",),                          # what may stand before the names of the base model
    architectures={"model": "ViTModel", ...},    # what a written config.json names, for each kind of model
    fields=fields,                               # Source -> fields of QKViTConfig, as a dict
    source_config=source_config,                 # QKViTConfig, kind -> fields of their config, as a dict
    layouts={"transformers-4": (...), ...},      # the rules for each way to name the tensors; the first is written
    left_out=(r"decoder\.",),                    # tensors that do not come along, which is said; any other is refused
)
```

A rule says which tensors of theirs are which of ours. Names are those of the base model, without a prefix on either
side; heads (`classifier`, `distillation_classifier`, `decoder`) never have one. `{layer}` stands for every layer. A
rule whose tensors the model does not have is passed over, so that one list serves every option of a family:

- `same("layernorm", "norm")`: `.weight` and `.bias`, under another name;
- `one("cls_token", "embeddings.class_token")`: one tensor, with the full name;
- `one("mask_token", "embeddings.mask_token", shape=lambda config: (1, config.hidden_size))`: with their shape;
- `split("attn.qkv", "q_proj", "k_proj", "v_proj")`: their `.weight` and `.bias` cut into ours along dimension 0;
- `empty("register_tokens", shape=...)`: a tensor of theirs without numbers, which we do not have;
- `when(condition, rules)`: rules for some configurations alone, where several would give the same tensor of ours.

Every rule can be undone to the bit: there are no sums and no products. What a family's config cannot say is found by
asking `fields` about the result of `source_config`, so `fields` must state every field that its own models decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import torch

from ....configuration.configuration_qkvit import QKViTConfig

Shape = tuple[int, ...]

# The heads of our models, by the start of their tensors' names: these stand beside the base model.
HEADS = {
    "classifier.": "classification",
    "distillation_classifier.": "classification",
    "decoder.": "masked_image_modeling",
}


@dataclass(frozen=True)
class Rule:
    """Tensors of theirs that are, in another cut or shape, tensors of ours.

    One for one: the same numbers, reshaped if `shape` says how theirs look. One for several: theirs is ours, one below
    the other. One for none: theirs holds no numbers. With `condition`, a rule is for the configurations of which that
    is true.
    """

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    shape: Callable[[QKViTConfig], Sequence[int]] | None = None
    condition: Callable[[QKViTConfig], bool] | None = None

    def __post_init__(self) -> None:
        assert len(self.theirs) == 1, "of several of theirs none may be one of ours"

    def holds(self, config: QKViTConfig) -> bool:
        """Whether the rule is one for this configuration."""
        return self.condition is None or self.condition(config)

    def named(self, theirs: Callable[[str], str], ours: Callable[[str], str]) -> Rule:
        """The same rule with other names."""
        return replace(self, theirs=tuple(map(theirs, self.theirs)), ours=tuple(map(ours, self.ours)))

    def to_ours(self, tensors: Sequence[torch.Tensor], shapes: Sequence[Shape]) -> list[torch.Tensor]:
        """Tensors of theirs -> of ours, which have these shapes."""
        if not self.ours:
            return []
        if len(self.ours) > 1:
            return list(tensors[0].split([shape[0] for shape in shapes]))
        return [tensors[0].reshape(shapes[0])]

    def to_theirs(self, tensors: Sequence[torch.Tensor], config: QKViTConfig) -> list[torch.Tensor]:
        """Tensors of ours -> of theirs."""
        if not self.ours:
            assert self.shape is not None, f"a rule for {self.theirs} alone says its shape"
            return [torch.empty(tuple(self.shape(config)), dtype=cast(Any, config.dtype))]
        if len(self.ours) > 1:
            return [torch.cat(list(tensors))]
        return [tensors[0] if self.shape is None else tensors[0].reshape(tuple(self.shape(config)))]


def one(theirs: str, ours: str, *, shape: Callable[[QKViTConfig], Sequence[int]] | None = None) -> tuple[Rule, ...]:
    """One tensor under another name, and in the shape that `shape` gives for theirs."""
    return (Rule((theirs,), (ours,), shape=shape),)


def same(theirs: str, ours: str) -> tuple[Rule, ...]:
    """`.weight` and `.bias` of a module under another name.

    Example:

    ```python
    >>> [rule.ours for rule in same("layernorm", "norm")]
    [('norm.weight',), ('norm.bias',)]

    ```
    """
    return tuple(Rule((f"{theirs}.{part}",), (f"{ours}.{part}",)) for part in ("weight", "bias"))


def split(theirs: str, *ours: str, parts: Sequence[str] = (".weight", ".bias")) -> tuple[Rule, ...]:
    """Their module holds several of ours, one below the other. `parts=("_weight", "_bias")` for `in_proj_weight`."""
    return tuple(Rule((theirs + part,), tuple(f"{name}.{part[1:]}" for name in ours)) for part in parts)


def empty(theirs: str, *, shape: Callable[[QKViTConfig], Sequence[int]]) -> tuple[Rule, ...]:
    """A tensor of theirs in which a dimension is 0, where we have none."""
    return (Rule((theirs,), (), shape=shape, condition=lambda config: 0 in shape(config)),)


def when(condition: Callable[[QKViTConfig], bool], rules: Sequence[Rule]) -> tuple[Rule, ...]:
    """The rules, for the configurations of which `condition` is true."""
    return tuple(replace(rule, condition=condition) for rule in rules)


def conv_patches(theirs: str) -> tuple[Rule, ...]:
    """The patch projection that they write as a strided convolution, (C, channels, patch height, patch width)."""

    def shape(config: QKViTConfig) -> Shape:
        return (config.hidden_size, config.num_channels, *config.patch_shape)

    return (
        *one(f"{theirs}.weight", "embeddings.patch_projection.weight", shape=shape),
        *one(f"{theirs}.bias", "embeddings.patch_projection.bias"),
    )


@dataclass(frozen=True)
class Source:
    """A checkpoint of theirs, as a family's `fields` sees it.

    Attributes:
        config: Their config.json; with what it leaves out, if the family names a `config_class`.
        shapes: Name -> shape of every tensor, without the prefix of the base model.
        where: The folder or id, for messages.
    """

    config: Mapping[str, Any]
    shapes: Mapping[str, Shape]
    where: str = "the source"

    def has(self, *names: str) -> bool:
        """Whether there is a tensor of one of these names."""
        return any(name in self.shapes for name in names)


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family of checkpoints; the module's docstring says how to write one.

    Attributes:
        recognises: Whether a config.json is one of this family; by default the `model_type` decides.
        written_prefix: The prefix that is written for a kind of model; by default the first of `prefixes` beside a
            head, and none without one.
        image_processor: Settings of the image processor from their config, where the folder has no
            preprocessor_config.json; None where there is nothing to say.
    """

    name: str
    fields: Callable[[Source], dict[str, Any]]
    source_config: Callable[[QKViTConfig, str], dict[str, Any]]
    layouts: Mapping[str, tuple[Rule, ...]]
    model_types: tuple[str, ...] = ()
    config_class: str | None = None
    prefixes: tuple[str, ...] = ()
    architectures: Mapping[str, str] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()
    recognises: Callable[[Mapping[str, Any]], bool] | None = None
    written_prefix: Callable[[str], str] | None = None
    image_processor: Callable[[Source], dict[str, Any] | None] | None = None

    def reads(self, config: Mapping[str, Any]) -> bool:
        """Whether this is the family of a config.json."""
        if self.recognises is not None:
            return self.recognises(config)
        return config.get("model_type") in self.model_types

    def prefix_of(self, names: Sequence[str]) -> str:
        """The prefix of the base model's tensors in a file: the first of `prefixes` that any name starts with."""
        return next((prefix for prefix in self.prefixes if any(name.startswith(prefix) for name in names)), "")

    def prefix_for(self, kind: str) -> str:
        """The prefix that is written for a kind of model."""
        if self.written_prefix is not None:
            return self.written_prefix(kind)
        return self.prefixes[0] if self.prefixes and kind != "model" else ""


# ---- the fields that all of transformers' families name alike

_SAME_NAME = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "hidden_act",
    "layer_norm_eps",
    "image_size",
    "patch_size",
    "num_channels",
    "initializer_range",
    "attention_probs_dropout_prob",
    "hidden_dropout_prob",
    "problem_type",
)


def plain_fields(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of QKViTConfig that transformers' vision families name alike: sizes, dropout, labels, biases."""
    fields = {name: config[name] for name in _SAME_NAME if name in config}
    for name in ("image_size", "patch_size"):
        if isinstance(fields.get(name), (list, tuple)):
            fields[name] = tuple(fields[name])
    if "image_size" in fields and "patch_size" in fields:
        fields["image_size"] = whole_patches(fields["image_size"], fields["patch_size"])
    if config.get("head_dim"):
        fields["head_dim"] = config["head_dim"]
    if config.get("intermediate_size"):
        fields["intermediate_size"] = config["intermediate_size"]
    if config.get("id2label"):
        labels = {int(index): name for index, name in config["id2label"].items()}
        fields["id2label"] = labels
        if labels != {index: f"LABEL_{index}" for index in labels}:
            fields["label2id"] = {name: index for index, name in labels.items()}
    bias = config.get("qkv_bias", True)
    return {**fields, "query_bias": bias, "key_bias": bias, "value_bias": bias}


def whole_patches(size: int | tuple[int, int], patch: int | tuple[int, int]) -> int | tuple[int, int]:
    """The pixels that are in a patch: a convolution passes over the rest, as SigLIP's of 14 over the last 6 of 384.

    Example:

    ```python
    >>> whole_patches(384, 14), whole_patches((30, 32), (4, 8))
    (378, (28, 32))

    ```
    """
    sizes, patches = ((value, value) if isinstance(value, int) else value for value in (size, patch))
    if min(patches) < 1:
        return size  # QKViTConfig refuses it, with a sentence
    if isinstance(size, int) and isinstance(patch, int):
        return size // patch * patch
    height, width = (side // unit * unit for side, unit in zip(sizes, patches, strict=True))
    return height, width


def plain_sizes(config: QKViTConfig) -> dict[str, int | tuple[int, int]]:
    """`image_size` and `patch_size`, one number each where they are square: some of transformers' models divide by it.

    Example:

    ```python
    >>> plain_sizes(QKViTConfig(image_size=(32, 32), patch_size=(8, 16)))
    {'image_size': 32, 'patch_size': (8, 16)}

    ```
    """
    shapes = {"image_size": config.image_shape, "patch_size": config.patch_shape}
    return {name: height if height == width else (height, width) for name, (height, width) in shapes.items()}


def plain_config(config: QKViTConfig) -> dict[str, Any]:
    """The inverse of `plain_fields`."""
    fields = {name: getattr(config, name) for name in _SAME_NAME} | plain_sizes(config)
    assert config.head_dim is not None  # set when a configuration is made
    if config.head_dim * config.num_attention_heads != config.hidden_size:
        fields["head_dim"] = config.head_dim
    if config.label2id:
        fields["label2id"] = dict(config.label2id)
    return {
        **fields,
        "intermediate_size": config.intermediate_size,
        "id2label": dict(config.id2label or {}),
        "qkv_bias": config.query_bias,
    }
