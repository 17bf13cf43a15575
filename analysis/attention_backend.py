"""The function that computes a module's attention: what it would have called by itself."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_layers import namespace_of


def backend_of(module: nn.Module, backend: str) -> Callable:
    """What the module would have called under that name."""
    names = namespace_of(module)
    interface = names.get("ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)
    default = _eager_function(module, names)
    if backend not in interface and default is None:
        raise ValueError(
            f"{type(module).__name__} has no one eager_attention_forward beside it, so attn_implementation={backend!r}"
            " cannot be wrapped: call model.set_attn_implementation('sdpa') first"
        )
    function = interface.get_interface(backend, default)
    if "flash" in backend:
        function = partial(_named, backend, function)
    # QKViT's modules call it by way of their shortcuts: what recomputes a layer must find the same, gradients too.
    own: Any = names.get("attend")
    return partial(own, function) if getattr(own, "__module__", "").endswith("shortcuts_qkvit") else function


def _named(backend: str, function: Callable, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """FlashAttention loads the kernels that the module's config names: it is to find their own name there."""
    return function(_View(module, config=_View(module.config, _attn_implementation=backend)), *args, **kwargs)


class _View:
    """An object with some other attributes, seen by one call alone: another thread sees it as it is."""

    def __init__(self, viewed: Any, **other: Any) -> None:
        vars(self).update(other, _viewed=viewed)

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_viewed"], name)


def _eager_function(module: nn.Module, names: dict[str, Any]) -> Callable | None:
    """What the module's forward names as its eager function; a file for images and text may have one for each."""
    code = getattr(inspect.unwrap(type(module).forward), "__code__", None)
    said = [name for name in getattr(code, "co_names", ()) if name.endswith("eager_attention_forward")]
    return names.get(said[0] if said else "eager_attention_forward") if len(said) < 2 else None
