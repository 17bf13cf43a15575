"""When a forward pass of an encoder begins and ends, and of how many images it is: for the sessions that are active."""

import threading
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

# Of `attention_door`: a thread sees the sessions that it opened, and no others.
active_sessions: ContextVar[tuple[Any, ...]] = ContextVar("qkvit_sessions", default=())


class ForwardPasses(threading.local):
    """What is known of the forward pass that runs in this thread; what is called by hand, or again in backward, is in
    none.

    A pass is the model's, or the encoder's where that is called by itself: a model may run its encoder several times.

    Args:
        model: The model, which sees the images.
        encoder: Its part whose forward pass goes through the layers; perhaps the same.

    Attributes:
        images: How many images the pass is of; `None` where it is not known.
        layers: Those that were recorded in the pass so far; `None` outside of one.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module) -> None:
        self.model, self.encoder = model, encoder
        self.owner: nn.Module | None = None
        self.images: int | None = None
        self.layers: set[int] | None = None

    def watch(self) -> list[RemovableHandle]:
        """Follow the passes of an active session until the hooks are removed."""
        hooks = []
        for module in {self.model, self.encoder}:
            hooks.append(module.register_forward_pre_hook(_begin, with_kwargs=True))
            hooks.append(module.register_forward_hook(_end, always_call=True))
        return hooks


# Functions that know no session: a copy of a model takes its hooks along. No graph of torch.compile may swallow them.
@torch.compiler.disable
def _begin(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
    given = (kwargs.get("pixel_values"), *args[:1])
    pixels = next((it for it in given if isinstance(it, torch.Tensor) and it.ndim > 3), None)
    for passes in (session.passes for session in active_sessions.get()):
        if module not in (passes.model, passes.encoder):
            continue
        if module is passes.model or passes.owner in (None, module):  # one that was cut short may own it still
            passes.owner, passes.layers, passes.images = module, set(), None
        if pixels is not None:
            passes.images = len(pixels)


@torch.compiler.disable
def _end(module: nn.Module, args: tuple, output: Any) -> None:
    for passes in (session.passes for session in active_sessions.get()):
        if module is passes.owner:
            passes.owner = passes.images = passes.layers = None
