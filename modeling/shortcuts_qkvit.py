"""Shortcuts: the same numbers sooner, taken only where nobody can see the way.

They need linear layers that are just that: no hooks, no adapters, no quantised or sharded weights. In training there
are two: joined weights (`_pays_to_join`), and gradients on CPUs (`attention_gradient_qkvit.py`). Everywhere else, the
plain way stands in `attention_qkvit.py` and `layers_qkvit.py`.
"""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook
from transformers.activations import GELUActivation, GELUTanh, SiLUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from .attention_gradient_qkvit import SmallAttention, pays_to_multiply
from .precision_qkvit import cast_once

_gelu: Any = nn.functional.gelu  # takes out=, which its type does not say

# Activations that can overwrite their input, by the class that transformers has for them.
_IN_PLACE: dict[type, Callable[[torch.Tensor], torch.Tensor]] = {
    GELUActivation: lambda x: _gelu(x, out=x),
    GELUTanh: lambda x: _gelu(x, approximate="tanh", out=x),
    SiLUActivation: lambda x: nn.functional.silu(x, inplace=True),
}


# Weights of so many numbers are joined. Of larger ones (width 768 and more), three products are as fast, and under
# autocast with one image faster (docs/performance.md).
_LARGEST_JOINED = 2**20
# The same in training on a CPU: a step is 1.01 times as fast up to this width, 0.99 at 768 (there too).
_WIDEST_JOINED_FOR_GRADIENTS_ON_CPU = 384
_NARROWEST_JOINED_WITHOUT_AUTOCAST = 192  # of less, it was not timed


def undisturbed() -> bool:
    """Whether a forward pass runs plainly now: no gradients or tangents, no compiler, no hook on every module."""
    return not (
        torch.is_grad_enabled()
        or torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or _has_any_global_hook()
    )


def unseen(module: nn.Module) -> bool:
    """Whether nobody hangs on this module: no hooks, and its own `forward` (accelerate puts its hooks there)."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )


def is_plain(linear: nn.Module) -> bool:
    """Whether this is `torch.nn.Linear` itself with a dense weight: no adapter, not quantised, sharded or pruned."""
    return type(linear) is nn.Linear and type(linear._parameters.get("weight")) is nn.Parameter


def activate(activation: nn.Module, linear: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """`activation(linear(x))`; in the memory of `linear(x)` where that cannot be seen.

    The widest tensor of a layer is then made once and not twice: fresh memory costs, for the system clears its pages.
    """
    in_place = _IN_PLACE.get(type(activation))
    if (
        in_place is None
        or not undisturbed()
        or not (is_plain(linear) and unseen(linear) and unseen(activation))
        or isinstance(activation.__dict__.get("act"), MethodType)  # "gelu_python": another rounding
    ):
        return activation(linear(x))
    return in_place(linear(x))


def attend(
    function: Callable,
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: Any,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """`function` of the attention interface; of transformers' own "sdpa", what it does here, without its other cases.

    They are causal masks, grouped heads, caches and other devices, asked about in every layer of every pass.

    Args:
        query, key, value: (B, H, N, D).

    Returns:
        The output (B, N, H, D), and a map if the function builds one.
    """
    if function is not sdpa_attention_forward or not (query.is_cpu or query.is_cuda):
        return function(module, query, key, value, mask, scaling=scaling, dropout=dropout)
    if pays_to_multiply(query, key, value, mask, dropout):
        return SmallAttention.apply(query, key, value, scaling).transpose(1, 2), None
    output = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout, scale=scaling)
    return output.transpose(1, 2), None


class Neighbours:
    """Linear layers of one input and one width, whose weights lie next to each other: one product does for all.

    Each weight stays a parameter with a storage of its own: it is saved, frozen, trained and written to as ever, and
    the product sees what was written, for there is no copy that could go stale. A weight that was moved elsewhere
    (`weight.data = ...`, or into memory shared with other processes) ends it: then there is a product for each again.

    Example:

    ```python
    >>> first, second = nn.Linear(4, 2), nn.Linear(4, 2)
    >>> neighbours = Neighbours()
    >>> neighbours.settle(first, second)
    >>> x = torch.rand(1, 5, 4)
    >>> with torch.no_grad():
    ...     together = neighbours.project(x, 1, first, second)
    >>> [tuple(part.shape) for part in together]  # (batch, heads, tokens, head_dim)
    [(1, 1, 5, 2), (1, 1, 5, 2)]
    >>> torch.allclose(together[1][0], second(x), atol=1e-6)
    True

    ```
    """

    def __init__(self) -> None:
        self.weight: torch.Tensor | None = None
        self.bias: torch.Tensor | None = None
        # Address and shape of each weight and its bias, as they were put.
        self.places: list[tuple[int | None, torch.Size | None, int | None, torch.Size | None]] = []

    def __reduce__(self) -> tuple:
        return Neighbours, ()  # copies and pickles of a module have weights elsewhere

    @torch.no_grad()
    def settle(self, *linears: Any) -> None:
        """Move the weights next to each other, unless they are, or are not plain, or are large."""
        if self._hold(linears):
            return
        self.weight = self.bias = None
        if not all(map(is_plain, linears)):
            return
        weights = [linear.weight for linear in linears]
        biases = [linear.bias for linear in linears if linear.bias is not None]
        if not all(map(_is_movable, weights + biases)):
            return
        kinds = {(part.dtype, part.device, len(part)) for part in weights + biases}
        if len(biases) not in (0, len(linears)) or len(kinds) > 1:
            return
        if len(set(map(id, weights + biases))) < len(weights + biases):  # one that is shared has no two places
            return
        if sum(weight.numel() for weight in weights) > _LARGEST_JOINED:
            return
        self.weight = _next_to_each_other(weights)
        self.bias = _next_to_each_other(biases) if biases else None
        self.places = [(*_place(linear.weight), *_place(linear.bias)) for linear in linears]

    def _hold(self, linears: Sequence[Any]) -> bool:
        """Whether the weights are plain, and where they were put. Asked in every layer of every pass: kept short.

        By address: a weight that is shared with another process is moved together with all views of it.
        """
        if self.weight is None:
            return False
        try:
            for linear, (weight_at, weight_shape, bias_at, bias_shape) in zip(linears, self.places, strict=True):
                if type(linear) is not nn.Linear:
                    return False
                weight, bias = linear._parameters.get("weight"), linear._parameters.get("bias")
                if type(weight) is not nn.Parameter or weight.data_ptr() != weight_at:
                    return False
                if weight.shape != weight_shape or not weight.is_contiguous():
                    return False
                if bias is None:
                    if bias_at is not None:
                        return False
                elif bias.data_ptr() != bias_at or bias.shape != bias_shape or not bias.is_contiguous():
                    return False
        except RuntimeError:  # there is no memory: a sparse weight, or one that is only thought of
            return False
        return True

    def _joined(self, linears: Sequence[Any], device: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Weight and bias, in a form of which autocast keeps conversions where it would keep those of the layers."""
        assert self.weight is not None
        parts = (part for linear in linears for part in linear._parameters.values() if part is not None)
        if not torch.is_autocast_enabled(device) or all(part.requires_grad for part in parts):
            return self.weight, self.bias
        return self.weight.detach(), None if self.bias is None else self.bias.detach()

    def project(self, x: torch.Tensor, num_heads: int, *linears: nn.Module) -> Sequence[torch.Tensor]:
        """`linear(x)` of each, in one product if possible, by heads: (B, N, C) -> each (B, H, N, D)."""
        batch_size, num_tokens, _ = x.shape
        if self.weight is not None and undisturbed():
            if not self._hold(linears):
                # Others took their places to stay, such as int8 weights: their memory is free. What torch.func or a
                # replica puts there for a moment is no parameter.
                if all(isinstance(linear._parameters.get("weight"), nn.Parameter) for linear in linears):
                    self.weight = self.bias = None
            elif all(map(unseen, linears)):
                joined = nn.functional.linear(x, *self._joined(linears, x.device.type))
                return joined.view(batch_size, num_tokens, len(linears), num_heads, -1).permute(2, 0, 3, 1, 4).unbind()
        if _pays_to_join(x) and _can_join(linears):
            joined = nn.functional.linear(x, *_join(linears)).unflatten(2, (len(linears) * num_heads, -1))
            # Parted before heads come first: their gradients lie as (B, N, H, D), and one copy puts them together.
            # "Unsafe" is to write into `joined`; its parts may be written into, as those of three products may.
            return [part.transpose(1, 2) for part in torch.unsafe_chunk(joined, len(linears), dim=2)]
        x = cast_once(x)
        return [linear(x).view(batch_size, num_tokens, num_heads, -1).transpose(1, 2) for linear in linears]


def _pays_to_join(x: torch.Tensor) -> bool:
    """Whether one product of weights that are joined in each pass beats three: in training.

    On a GPU each operation costs the processor a launch, and the gradients of three inputs are not added up. What it
    takes under autocast is a copy of the weights for the moment; what lasts until the backward pass is what autocast
    keeps of three weights as well. In a compiled graph joining and converting are one operation, in inference too.
    Without autocast the copy would last, and a sharded model keep whole weights. On a CPU it pays where products are so
    small that calling them counts (docs/performance.md); such weights are small beside what else lasts.
    """
    device, is_compiled = x.device.type, torch.compiler.is_compiling()
    if device == "cuda":
        return torch.is_autocast_enabled(device) and (torch.is_grad_enabled() or is_compiled)
    if device != "cpu" or is_compiled or torch.jit.is_tracing() or not torch.is_grad_enabled():
        return False
    narrowest = 0 if torch.is_autocast_enabled(device) else _NARROWEST_JOINED_WITHOUT_AUTOCAST
    return narrowest <= x.shape[-1] <= _WIDEST_JOINED_FOR_GRADIENTS_ON_CPU


def _can_join(linears: Sequence[Any]) -> bool:
    """Whether nobody sees that layers are joined, they are of float32, and all of them are trained or none is."""
    if _has_any_global_hook() or not all(is_plain(linear) and unseen(linear) for linear in linears):
        return False
    weights, biases = [linear.weight for linear in linears], [linear.bias for linear in linears]
    kinds = {(it.dtype, it.device, it.shape, it.requires_grad) for it in weights}
    kinds_of_bias = {it if it is None else (it.dtype, it.requires_grad) for it in biases}
    return len(kinds) == len(kinds_of_bias) == 1 and weights[0].dtype == torch.float32


def _join(linears: Sequence[Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight and bias of one layer in the place of all; on the way back, their gradients are parts of one tensor."""
    weight = torch.cat([linear.weight for linear in linears])
    return weight, None if linears[0].bias is None else torch.cat([linear.bias for linear in linears])


def _next_to_each_other(parts: list[nn.Parameter]) -> torch.Tensor:
    """Give the parameters, in their order, parts of one tensor (their rows together) as memory; returns that tensor."""
    joined = torch.cat([part.detach() for part in parts])
    for part, place in zip(parts, joined.split([len(part) for part in parts]), strict=True):
        part.data = torch.from_dlpack(place)  # its own storage: what saves a model must not take it for shared
    return joined.requires_grad_()  # a leaf that asks for gradients, like a parameter: autocast keeps its conversion


def _is_movable(part: torch.Tensor) -> bool:
    if type(part) is not nn.Parameter or part.layout is not torch.strided:
        return False
    if part.device.type == "cpu":
        return not part.is_shared()  # moving it would part it from other processes
    return part.device.type == "cuda"


def places_of(*linears: Any) -> list[tuple[int | None, torch.Size | None]] | None:
    """Where the weights and biases of linear layers lie; `None` where one has no memory of its own to lie in."""
    try:
        return [_place(part) for linear in linears for part in linear.parameters()]
    except RuntimeError:  # sparse, or only thought of
        return None


def _place(part: torch.Tensor | None) -> tuple[int | None, torch.Size | None]:
    return (None, None) if part is None else (part.data_ptr(), part.shape)
