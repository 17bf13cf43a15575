"""The weights of every attention head, found by the names that transformers' vision models give them.

Shapes: H heads, D width of a head, C width of the model.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .attention_layers import attention_layers, parents_of, unwrapped, whole_attention

# Attributes of an attention module, and of the layer around it, in the order in which they are looked for.
PROJECTIONS = {
    "query": ("q_proj", "query"),
    "key": ("k_proj", "key"),
    "value": ("v_proj", "value"),
    "output": ("o_proj", "out_proj", "proj", "projection_layer"),
}
OUTPUT_BESIDE = "output.dense"  # where the output projection is beside the attention module
NORMS_BEFORE = ("attention_norm", "layernorm_before", "norm1", "layer_norm1", "rms_norm1", "input_layernorm")
SCALES_AFTER = ("attention_residual.layer_scale", "layer_scale1.lambda1", "lambda_1")
POSITION_BIASES = ("relative_position_bias_table", "continuous_position_bias_mlp")
HEAD_NORMS = ("q_norm", "k_norm", "query_norm", "key_norm")


@dataclass(frozen=True)
class LayerWeights:
    """The weights of one layer's heads, in float64: q = W_Q x + b_Q for a column x, and W_O v at the end.

    Args:
        query, key, value: (H, D, C), W_Q, W_K, W_V of each head; keys and values that heads share are repeated.
        output: (H, C, D), W_O of each head.
        query_bias, key_bias, value_bias: (H, D); zeros where there is none.
        gain, shift: (C,) of the norm before attention; ones and zeros where there is none.
        centred: Whether that norm takes the mean away (LayerNorm does, RMSNorm does not).
        scale: (C,) of LayerScale after attention; ones where there is none.
        scaling: What the products of queries and keys are multiplied by.
    """

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    output: torch.Tensor
    query_bias: torch.Tensor
    key_bias: torch.Tensor
    value_bias: torch.Tensor
    gain: torch.Tensor
    shift: torch.Tensor
    centred: bool
    scale: torch.Tensor
    scaling: float


def head_weights(model: Any) -> dict[int, LayerWeights]:
    """The weights of every layer's heads, by the number of the layer.

    Raises:
        ValueError: projections are missing, fused into one, adapted but not merged, or hold NaN or infinity.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> layers = head_weights(QKViTModel(config))
    >>> list(layers), layers[0].query.shape, layers[0].output.shape
    ([0, 1], torch.Size([3, 64, 192]), torch.Size([3, 192, 64]))

    ```
    """
    model = unwrapped(model)
    parents = parents_of(model)
    return {layer: _layer_weights(layer, attention, parents) for layer, attention in attention_layers(model).items()}


def output_projection(layer: int, attention: nn.Module, model: nn.Module) -> nn.Linear:
    """The linear layer after a layer's attention; raises `ValueError` where there is none."""
    return _projection(layer, attention, "output", whole_attention(attention, parents_of(model)))


def caveats(model: Any) -> tuple[str, ...]:
    """Where a score is more than x^T W_Q^T W_K y: what statistics of that product leave out, in sentences."""
    model = unwrapped(model)
    found = []
    attentions = list(attention_layers(model).values())
    norms = [getattr(attention, name, None) for attention in attentions for name in HEAD_NORMS]
    if any(norm is not None and not isinstance(norm, nn.Identity) for norm in norms):
        found.append("queries and keys are normalised before their product, and numbers about W_Q^T W_K leave that out")
    turned = getattr(model.config, "position_embedding", None) == "rope2d" or any(
        "rope" in type(module).__name__.lower() or "rotary" in type(module).__name__.lower()
        for module in model.modules()
    )
    if turned:
        found.append("positions turn queries and keys, and numbers about W_Q^T W_K are those of a token with itself")
    if any(part in POSITION_BIASES for name, _ in model.named_parameters() for part in name.split(".")):
        found.append("a bias by relative position is added to scores, and numbers about W_Q^T W_K leave that out")
    parents = parents_of(model)
    around = [parents.get(whole_attention(attention, parents)) for attention in attentions]
    unknown = {
        name
        for module in around
        if module is not None and _first(module, NORMS_BEFORE) is None
        for name, _ in module.named_children()
        if "norm" in name.lower()
    }
    if unknown:
        found.append(f"no norm before attention was found ({', '.join(sorted(unknown))}?), and its gain is left out")
    return tuple(found)


def _layer_weights(layer: int, attention: nn.Module, parents: dict[nn.Module, nn.Module]) -> LayerWeights:
    whole = whole_attention(attention, parents)
    around = parents.get(whole)
    query, key, value, output = (_projection(layer, attention, which, whole) for which in PROJECTIONS)
    heads = _num_heads(attention)
    sharing = int(getattr(attention, "num_key_value_groups", None) or 1)  # queries' heads to one of keys and values
    width = query.weight.shape[1]

    def split(name: str, weight: torch.Tensor) -> torch.Tensor:
        count = heads // sharing if name.split()[0] in ("key", "value") else heads
        if weight.shape[0] % count:
            raise ValueError(
                f"layer {layer}: {weight.shape[0]} rows of the {name} projection do not make {count} heads"
            )
        return _finite(layer, name, weight).unflatten(0, (count, -1)).repeat_interleave(heads // count, dim=0)

    def split_bias(name: str, projection: nn.Linear) -> torch.Tensor:
        bias: torch.Tensor | None = getattr(projection, "bias", None)
        return split(f"{name} bias", projection.weight.new_zeros(len(projection.weight)) if bias is None else bias)

    norm = _first(around, NORMS_BEFORE)
    gain = getattr(norm, "weight", None)
    shift = getattr(norm, "bias", None)
    scale = _first(around, SCALES_AFTER)
    ones, zeros = torch.ones(width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    return LayerWeights(
        query=split("query", query.weight),
        key=split("key", key.weight),
        value=split("value", value.weight),
        output=split("output", output.weight.T).transpose(1, 2),
        query_bias=split_bias("query", query),
        key_bias=split_bias("key", key),
        value_bias=split_bias("value", value),
        gain=ones if gain is None else _finite(layer, "norm", gain),
        shift=zeros if shift is None else _finite(layer, "norm", shift),
        centred=isinstance(norm, nn.LayerNorm),
        scale=ones if scale is None else _finite(layer, "LayerScale", scale),
        scaling=_scaling(attention, query.weight.shape[0] // heads),
    )


def _projection(layer: int, attention: nn.Module, which: str, whole: nn.Module) -> nn.Linear:
    found = _first(attention, PROJECTIONS[which])
    if found is None and which == "output":
        found = _first(whole, (OUTPUT_BESIDE,))
    if hasattr(found, "base_layer"):
        raise ValueError(f"layer {layer}: the {which} projection has an adapter; merge it first (merge_and_unload)")
    if not isinstance(found, nn.Linear):
        raise ValueError(
            f"layer {layer}: {type(attention).__name__} has no linear {which} projection of its own; pass a model whose"
            f" attention has one, named {' or '.join(PROJECTIONS[which])}"
        )
    return found


def _num_heads(attention: nn.Module) -> int:
    for name in ("num_attention_heads", "num_heads"):
        if isinstance(getattr(attention, name, None), int):
            return getattr(attention, name)
    return int(attention.config.num_attention_heads)  # type: ignore[union-attr, arg-type]


def _scaling(attention: nn.Module, head_dim: int) -> float:
    for name in ("scaling", "scale"):
        if isinstance(getattr(attention, name, None), float):
            return getattr(attention, name)
    return float(head_dim**-0.5)


def _first(module: Any, names: tuple[str, ...]) -> Any:
    """The first attribute that exists and is not None; a name may have dots."""
    for name in names:
        found = module
        for part in name.split("."):
            found = getattr(found, part, None)
        if found is not None:
            return found
    return None


def _finite(layer: int, name: str, weight: torch.Tensor) -> torch.Tensor:
    weight = weight.detach().double().cpu()
    if not weight.isfinite().all():
        raise ValueError(f"layer {layer}: the {name} weights hold NaN or infinity; pass a model that was saved whole")
    return weight
