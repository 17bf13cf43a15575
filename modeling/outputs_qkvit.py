"""What a QKViT model returns: transformers' outputs with queries, keys and values added.

`ModelOutput` is a dictionary, so `keys` and `values` are methods of it; here they are also fields. `out.keys` is
the tuple of key tensors when they were asked for, and `out.keys()` still lists the names of what is in the output,
as every library that takes a `ModelOutput` apart needs it.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch.utils import _pytree as pytree
from transformers.utils import ModelOutput

# One entry per layer; None for a layer that was not asked for.
LayerTensors = tuple[torch.Tensor | None, ...]


class CallableTuple(tuple):
    """A tuple that, called, answers with the dictionary method whose name it took.

    What is made of it (by `type(it)(items)`, pickle, copy or a map over a pytree) is a plain tuple.
    """

    method: Callable[[], Any]

    def __new__(cls, items: Iterable, method: Callable[[], Any] | None = None) -> Any:
        if method is None:
            return tuple(items)
        self = super().__new__(cls, items)
        self.method = method
        return self

    def __call__(self) -> Any:
        return self.method()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return tuple, (tuple(self),)


pytree.register_pytree_node(CallableTuple, lambda items: (list(items), None), lambda items, _: tuple(items))


def _plain(value: Any) -> Any:
    """A field's value as it is kept: what one output shows may be put into another, also a method where nothing is."""
    if isinstance(value, partial):
        return None
    return tuple(value) if isinstance(value, CallableTuple) else value


# Functions of Python, for torch.compile and torch.export cannot trace the dictionary's own, which are of C.
_METHODS: dict[str, Callable[[Any], Any]] = {
    "keys": lambda output: OrderedDict.keys(output),
    "values": lambda output: OrderedDict.values(output),
}


class _FieldOverMethod:
    """Descriptor: the field where it was set, the dictionary's method of the same name where not."""

    def __init__(self, name: str) -> None:
        self.kept = _kept(name)
        self.method = _METHODS[name]

    def __get__(self, output: Any, owner: type | None = None) -> Any:
        if output is None:
            return self.method
        method = partial(self.method, output)
        field = output.__dict__.get(self.kept)
        return method if field is None else CallableTuple(field, method)

    def __set__(self, output: Any, value: Any) -> None:
        output.__dict__[self.kept] = value


def _kept(field: str) -> str:
    """Where an instance keeps a field. Under the method's own name, torch.compile would not look for the method."""
    return f"_{field}" if field in _METHODS else field


def _with_keys_and_values(cls: type) -> type:
    """Let the fields `keys` and `values` stand over the dictionary methods (after `@dataclass` has read them)."""
    for name in _METHODS:
        setattr(cls, name, _FieldOverMethod(name))
    return cls


class _QKVOutput(ModelOutput):
    """The items stand in the order of the fields, whatever is set last, so that `to_tuple` is the same everywhere."""

    __dataclass_fields__: ClassVar[dict[str, Any]]  # of the classes below

    def __post_init__(self) -> None:
        # Each field has been entered by __setattr__. What is left is a dictionary or an iterator of pairs in the place
        # of the first field, from which other libraries rebuild an output.
        first = next(iter(self.__dataclass_fields__))
        if not isinstance(self.__dict__[first], torch.Tensor | type(None)):
            super().__post_init__()

    def __setattr__(self, name: str, value: Any) -> None:
        value = _plain(value)
        if value is not None and name in self.__dataclass_fields__:
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    def __setitem__(self, name: str, value: Any) -> None:
        new = name not in self
        super().__setitem__(name, _plain(value))
        for field in self.__dataclass_fields__ if new else ():  # a value may be put in another's place in a loop
            if field in self:
                self.move_to_end(field)

    def __repr__(self) -> str:
        shown = ", ".join(f"{field}={self.__dict__.get(_kept(field))!r}" for field in self.__dataclass_fields__)
        return f"{type(self).__name__}({shown})"

    def __reduce__(self) -> Any:  # pickle and deepcopy: the fields as set, not as the descriptors show them
        return type(self), tuple(self.__dict__.get(_kept(field)) for field in self.__dataclass_fields__)


@_with_keys_and_values
@dataclass(repr=False)
class QKViTModelOutput(_QKVOutput):
    """Output of `QKViTModel`. B batch, N tokens, C width, H heads, D head width.

    Args:
        last_hidden_state: (B, N, C), after the final normalisation, unless `norm_position` has it elsewhere.
        pooler_output: (B, C), (B, 2 C) for `pooling="class_mean"`, or (B, `pooler_size`).
        hidden_states: (B, N, C) after the embeddings and after each layer.
        attentions: (B, H, N queries, N keys), rows sum to 1.
        queries, keys, values: (B, H, N, D), exactly as they enter softmax(Q K^T) V.
    """

    last_hidden_state: torch.Tensor | None = None
    pooler_output: torch.Tensor | None = None
    hidden_states: LayerTensors | None = None
    attentions: LayerTensors | None = None
    queries: LayerTensors | None = None
    keys: LayerTensors | None = None  # type: ignore[assignment]
    values: LayerTensors | None = None  # type: ignore[assignment]


@_with_keys_and_values
@dataclass(repr=False)
class QKViTClassifierOutput(_QKVOutput):
    """Output of `QKViTForImageClassification`; the rest as in `QKViTModelOutput`.

    Args:
        loss: Scalar, when labels were given.
        logits: (B, labels). With a distillation token: the mean of the two classifiers' logits.
        distillation_logits: (B, labels) of the distillation token's own classifier.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    distillation_logits: torch.Tensor | None = None
    hidden_states: LayerTensors | None = None
    attentions: LayerTensors | None = None
    queries: LayerTensors | None = None
    keys: LayerTensors | None = None  # type: ignore[assignment]
    values: LayerTensors | None = None  # type: ignore[assignment]


@_with_keys_and_values
@dataclass(repr=False)
class QKViTMaskedImageModelingOutput(_QKVOutput):
    """Output of `QKViTForMaskedImageModeling`; the rest as in `QKViTModelOutput`.

    Args:
        loss: Scalar, when patches were masked.
        reconstruction: (B, channels, height, width) pixels.
    """

    loss: torch.Tensor | None = None
    reconstruction: torch.Tensor | None = None
    hidden_states: LayerTensors | None = None
    attentions: LayerTensors | None = None
    queries: LayerTensors | None = None
    keys: LayerTensors | None = None  # type: ignore[assignment]
    values: LayerTensors | None = None  # type: ignore[assignment]


@_with_keys_and_values
@dataclass(repr=False)
class QKViTBackboneOutput(_QKVOutput):
    """Output of `QKViTBackbone`; the rest as in `QKViTModelOutput`.

    Args:
        feature_maps: One per chosen stage: (B, C, rows, columns) of the patches, or (B, N, C) tokens.
    """

    feature_maps: tuple[torch.Tensor, ...] | None = None
    hidden_states: LayerTensors | None = None
    attentions: LayerTensors | None = None
    queries: LayerTensors | None = None
    keys: LayerTensors | None = None  # type: ignore[assignment]
    values: LayerTensors | None = None  # type: ignore[assignment]
