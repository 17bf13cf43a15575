"""Conversions under autocast: made once where autocast would make them several times, and not kept in vain."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch


def cast_once(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in autocast's data type, for several matrix products to share; as it is without autocast.

    Autocast converts the input of every product anew: three times for Q, K and V.
    """
    device = tensor.device.type
    if tensor.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return tensor.to(torch.get_autocast_dtype(device))
    return tensor


def conversions_of_a_pass(tokens: torch.Tensor) -> AbstractContextManager:
    """A context for all layers of a pass, in which autocast does not keep converted weights that nobody will ask for.

    Autocast keeps each until its own context ends. In a pass without gradients, which uses every weight once, that is
    fresh memory for half of the model in place of one weight's, used again and again; docs/performance.md says what it
    costs. In inference mode torch does not keep them either.

    Where several passes share autocast's context, all but the first keep them: as ever, weights must not be changed
    within one. A layer that is compiled by itself is compiled twice then.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return nullcontext()
    if not tokens.is_cpu or type(tokens) is not torch.Tensor:  # one that is only thought of has no autocast
        return nullcontext()
    if not (torch.is_autocast_enabled("cpu") and torch.is_autocast_cache_enabled()):
        return nullcontext()
    if torch.is_inference_mode_enabled() or _Witness.was_here():
        return nullcontext()
    return _nothing_kept()


@contextmanager
def _nothing_kept() -> Iterator[None]:
    torch.set_autocast_cache_enabled(False)  # of this thread
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(True)


class _Witness(torch.Tensor):
    """A weight of no numbers that knows when autocast converts it: once in a context that keeps conversions."""

    conversions = 0
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(cls) -> Any:
        cpu = torch.device("cpu")
        return torch.Tensor._make_wrapper_subclass(cls, (0, 0), dtype=torch.float32, device=cpu, requires_grad=True)

    @classmethod
    def __torch_dispatch__(cls, *_: Any) -> Any:
        cls.conversions += 1
        return torch.empty(0, 0, dtype=torch.get_autocast_dtype("cpu"), device="cpu")

    @classmethod
    def was_here(cls) -> bool:
        """Whether this has been asked before in the same autocast context."""
        before = cls.conversions
        torch.mm(_witness, _witness)
        return cls.conversions == before


_witness = _Witness()
