"""Where a model computes attention: its attention modules, in the order of its layers.

A layer counts if its code calls the function that `transformers.AttentionInterface` has under the name in
`config._attn_implementation`. Pooling heads with attention of their own (SigLIP) do not, and so do not disturb the
numbers; of several towers (CLIP, SigLIP) the one that sees images is meant.
"""

import inspect
import operator
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import PreTrainedModel

_INTERFACE_NAMES = {"ALL_ATTENTION_FUNCTIONS", "get_interface"}


def unwrapped(model: Any) -> nn.Module:
    """The model inside DataParallel, DistributedDataParallel, FullyShardedDataParallel or a Trainer.

    Raises:
        ValueError: it is no model, it is compiled, or DataParallel would copy it to several devices.
    """
    if not isinstance(model, nn.Module) and isinstance(getattr(model, "model", None), nn.Module):
        model = model.model  # a Trainer
    if not isinstance(model, nn.Module):
        raise ValueError(f"model is a {type(model).__name__}; pass a transformers model")
    _refuse_compiled(model)
    while isinstance(getattr(model, "module", None), nn.Module) and _is_wrapper(model):
        if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
            raise ValueError(
                f"DataParallel runs copies of {type(model.module).__name__} in threads of its own, where nothing can be"
                " recorded or edited: use DistributedDataParallel, or the model inside (model.module)"
            )
        model = model.module
    return model


def see_images(model: Any, pixel_values: torch.Tensor) -> Any:
    """Run a model on images; of one with a text tower (CLIP, SigLIP), the vision tower alone."""
    if getattr(model, "main_input_name", "pixel_values") != "pixel_values" and hasattr(model, "get_image_features"):
        return model.get_image_features(pixel_values=pixel_values)
    return model(pixel_values=pixel_values)


def attention_layers(model: nn.Module) -> dict[int, nn.Module]:
    """The attention modules by the number of their layer.

    Args:
        model: A model as `unwrapped` gives it.

    Returns:
        Layer -> module: the module's own `layer_idx` where all of them have one, or else their order in the encoder.

    Raises:
        ValueError: no attention of the model goes through the interface, or several towers may be meant.

    Example:

    ```python
    >>> from transformers import SiglipVisionConfig, SiglipVisionModel
    >>> config = SiglipVisionConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    >>> [(layer, type(module).__name__) for layer, module in attention_layers(SiglipVisionModel(config)).items()]
    [(0, 'SiglipAttention'), (1, 'SiglipAttention')]

    ```
    """
    return encoder_and_layers(model)[1]


def encoder_and_layers(model: nn.Module) -> tuple[nn.Module, dict[int, nn.Module]]:
    """The encoder whose forward pass goes through the layers, and `attention_layers`."""
    towers: dict[nn.Module, list[nn.Module]] = {}
    for owner, module in _walk(model):
        modules = towers.setdefault(owner, [])
        if module not in modules:  # a layer that is used twice is one layer
            modules.append(module)
    if not towers:
        raise ValueError(
            f"{type(model).__name__} computes attention without transformers.AttentionInterface, so nothing of it can"
            " be recorded or edited: pass a model that uses it (ViT, DINOv2, CLIP, SigLIP, QKViT and most others do)"
        )
    encoder = _tower(model, list(towers))
    modules = towers[encoder]
    numbers: list[Any] = [getattr(module, "layer_idx", None) for module in modules]
    if None in numbers or len(set(numbers)) < len(numbers):
        numbers = list(range(len(modules)))
    numbered = dict(zip(numbers, modules, strict=True))
    return encoder, {layer: numbered[layer] for layer in sorted(numbered)}


def calls_interface(module: nn.Module) -> bool:
    """Whether a module's own code asks the interface for its attention function."""
    kind: Any = type(module)  # Any: mypy takes a class of modules for one that has no hash
    if isinstance(module, PreTrainedModel) or not _names_interface(kind):
        return False
    return getattr(module, "config", None) is not None


@lru_cache(maxsize=1024)
def _names_interface(kind: type) -> bool:
    for base in kind.__mro__[: kind.__mro__.index(nn.Module)]:
        for member in vars(base).values():
            code = getattr(inspect.unwrap(member), "__code__", None) if callable(member) else None
            if code is not None and _INTERFACE_NAMES & set(code.co_names):
                return True
    return False


def parents_of(model: nn.Module) -> dict[nn.Module, nn.Module]:
    """The module around each module of the model."""
    return {child: module for module in every_module(model) for child in module.children()}


def whole_attention(attention: nn.Module, parents: dict[nn.Module, nn.Module]) -> nn.Module:
    """The attention module with its output projection: itself, or the one around it that is made of the two alone.

    Some families (VideoMAE, and DINOv2 in transformers 5.17) have the projection beside the module that calls the
    interface, as `output.dense`.
    """
    around = parents.get(attention)
    if around is None or len(around._modules) > 2:  # a layer has more, and its `output.dense` is its MLP's
        return attention
    return around if hasattr(getattr(around, "output", None), "dense") else attention


def namespace_of(module: nn.Module) -> dict[str, Any]:
    """The global names that the module's forward sees."""
    return getattr(inspect.unwrap(type(module).forward), "__globals__", {})


def chosen(asked: Any, layers: dict[int, Any], what: str = "layers") -> list[int]:
    """Layer numbers from None (all), one number or several; negative ones count from the end.

    Example:

    ```python
    >>> chosen([0, -1], {0: "a", 1: "b", 2: "c"})
    [0, 2]
    >>> chosen(5, {0: "a", 1: "b"})
    Traceback (most recent call last):
    ...
    ValueError: layers=5 asks for layer 5 of a model with layers 0 to 1; pass some of these, numbers from -2 to -1, ...

    ```
    """
    numbers = list(layers)
    if asked is None:
        return numbers
    if isinstance(asked, slice):
        several = numbers[asked]
    else:
        several = list(asked) if isinstance(asked, Iterable) and getattr(asked, "ndim", None) != 0 else [asked]
    found = []
    for layer in several:
        try:
            number = None if isinstance(layer, bool) else operator.index(layer)
        except TypeError:
            number = None
        if number is not None and -len(numbers) <= number < 0:
            number = numbers[number]  # of a model without one of its layers, the numbers have a gap
        if number not in layers:
            has_gap = numbers[-1] - numbers[0] >= len(numbers)
            named = ", ".join(map(str, numbers)) if has_gap else f"{numbers[0]} to {numbers[-1]}"
            raise ValueError(
                f"{what}={asked!r} asks for layer {layer!r} of a model with layers {named}; pass some of these, numbers"
                f" from {-len(numbers)} to -1, which count from the end, or None for all"
            )
        found.append(number)
    if not found:
        raise ValueError(f"{what}={asked!r} names no layer; pass layer numbers, or None for all")
    return list(dict.fromkeys(found))


def _is_wrapper(model: nn.Module) -> bool:
    return type(model).__module__.startswith("torch.")


def every_module(model: nn.Module) -> Iterator[nn.Module]:
    """As `model.modules()`, in a sixth of the time: it makes no names. A recording of one image opens with it."""
    seen, waiting = set(), [model]
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            waiting.extend(child for child in reversed(module._modules.values()) if child is not None)


def check_images(layer: int, query: torch.Tensor, images: int) -> None:
    """Refuse queries (B, H, N, D) of other things than the images, of which statistics are.

    Raises:
        ValueError: they are of windows of them.
    """
    if len(query) != images:
        raise ValueError(
            f"layer {layer} attends within {len(query)} parts of {images} images, and statistics over a data set are of"
            " whole images: record such a layer, and take attention_statistics of what is recorded"
        )


def _refuse_compiled(model: nn.Module) -> None:
    for module in every_module(model):
        original = module._modules.get("_orig_mod")  # of torch.compile(model)
        if original is not None or getattr(module, "_compiled_call_impl", None) is not None:
            name = type(module if original is None else original).__name__
            raise ValueError(
                f"{name} is compiled, and a compiled graph may bypass what records and edits: pass the model as it was"
                " before torch.compile (model._orig_mod, or one on which compile() was not called)"
            )


def _walk(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Each attention module with the innermost model that it belongs to, in order."""
    waiting = [(model, model)]
    while waiting:
        module, owner = waiting.pop()
        if isinstance(module, PreTrainedModel):
            owner = module
        if calls_interface(module):
            yield owner, module
        waiting.extend((child, owner) for child in reversed(module._modules.values()) if child is not None)


def _tower(model: nn.Module, towers: list[nn.Module]) -> nn.Module:
    """The one that is meant: the only one, the one that sees images, or the base model."""
    if len(towers) == 1:
        return towers[0]
    seeing = [tower for tower in towers if getattr(tower, "main_input_name", None) == "pixel_values"]
    if len(seeing) == 1:
        return seeing[0]
    base = getattr(model, "base_model", None)
    if base in seeing:
        return base
    names = {id(module): name for name, module in model.named_modules()}
    listed = ", ".join(f"model.{names[id(tower)]}" for tower in towers if names[id(tower)])
    raise ValueError(f"{type(model).__name__} has several encoders; pass the one that you mean: {listed}")
