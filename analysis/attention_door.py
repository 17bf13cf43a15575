"""The one door through which every analysis sees and edits attention.

Every attention module asks `transformers.AttentionInterface` for the function that stands under the name in its
`config._attn_implementation`. While a session is open on a model, its config names a wrapper of the backend that was in
use ("sdpa+qkvit" for "sdpa"), and `AttentionMaskInterface` has the backend's own masks under that name too. The wrapper
calls the backend with the same tensors, so what is computed stays the same to the bit.

Who sees what:

- Sessions are kept in a context variable: a thread sees those that it opened, and no others.
- A session names attention modules: another model is not seen, even one that shares the config.
- A wrapper without a session for the module that calls is the backend. It keeps no state, and so it is safe in a
  thread that is in the middle of a forward pass while another opens or closes a session.

Gradient checkpointing computes a layer a second time, in the backward pass: perhaps in another thread, perhaps after
the session was closed. What is checkpointed while a session is open therefore takes the session along (`_Region`);
edits in what is checkpointed in another way are refused.
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from torch.utils import checkpoint
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, AttentionMaskInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, AttentionInterface

from .attention_backend import backend_of
from .attention_layers import encoder_and_layers, every_module, unwrapped
from .attention_product import AttentionCall
from .forward_pass import ForwardPasses
from .forward_pass import active_sessions as _active
from .replacements import MAPS

try:
    from torch._C._dynamo.eval_frame import get_eval_frame_callback as dynamo_callback
except ImportError:  # not public: where it is gone, the wrapper works between the pieces of a compiled graph
    dynamo_callback = None  # type: ignore[assignment]

_SUFFIX = "+qkvit"


class Session:
    """What sees or edits the calls of one model's attention modules, from `__enter__` to `__exit__`.

    Args:
        model: A model, or a wrapper around one.

    Raises:
        ValueError: nothing of the model can be seen; it says why.
    """

    alters = False  # whether the computation is another one than without the session

    def __init__(self, model: Any) -> None:
        self.model = unwrapped(model)
        encoder, self.modules = encoder_and_layers(self.model)
        self.layers = {module: layer for layer, module in self.modules.items()}
        self.calls: dict[int, int] = {}
        self.passes = ForwardPasses(self.model, encoder)
        self._places: list[Any] = []
        self._hooks: list[Any] = []
        for module in self.layers:
            _check_backend(module)  # refuse now what could not be called later

    def needs_maps(self, layer: int) -> bool:
        """Whether the layer must compute its product step by step."""
        return False

    def replaces(self, layer: int, target: str) -> bool:
        """Whether `edit` puts something in the place of the layer's tensor."""
        return False

    def edit(self, target: str, tensor: torch.Tensor, call: AttentionCall) -> torch.Tensor:
        """What takes the place of "query", "key", "value", "scores", "attention" or "output"."""
        return tensor

    def see(self, call: AttentionCall, seen: dict[str, torch.Tensor]) -> None:
        """Look at a finished call: `seen` has "output" and, where they were computed, "scores" and "attention"."""

    def __enter__(self) -> Any:
        if self in _open:
            raise ValueError("this context is open already, and closing it twice would lose what it does; make another")
        self.calls = dict.fromkeys(self.modules, 0)  # a context may be used again
        self._places = [*configs_of(self), *_checkpointing(self.model)]
        _install(self._places)
        self._hooks = self.passes.watch()
        _open.append(self)
        _active.set((*_active.get(), self))
        return self

    def __exit__(self, *error: Any) -> None:
        _active.set(tuple(session for session in _active.get() if session is not self))
        _open.remove(self)
        for hook in self._hooks:
            hook.remove()
        is_installed = self._is_installed()
        _uninstall(self._places)
        if not is_installed and not any(error):  # an error says more
            raise ValueError(
                f"the attention implementation of {type(self.model).__name__} was set inside the context, which took"
                " out what records and edits: set it before the context is entered"
            )

    def is_altered(self) -> bool:
        """Whether another session makes the model compute something else here and now."""
        return any(other.alters and other.layers.keys() & self.layers.keys() for other in _active.get())

    def _is_installed(self) -> bool:
        """Whether the model still asks for the wrapper: setting another implementation takes it out."""
        return all(_is_door(config._attn_implementation) for config in configs_of(self))


def configs_of(session: Session) -> list[Any]:
    """The configs from which the session's modules take the name of their backend, each once."""
    return list({id(module.config): module.config for module in session.layers}.values())


# ---- what is active


_region: ContextVar["_Region | None"] = ContextVar("qkvit_region", default=None)
_open: list[Session] = []  # of all threads


class _Region:
    """A checkpointed piece of a forward pass: the sessions that were active, and the numbers that its calls had."""

    def __init__(self, sessions: tuple[Session, ...]) -> None:
        self.sessions = sessions
        self.numbers: list[tuple[int, ...]] = []
        self.recomputed: Iterator[tuple[int, ...]] | None = None  # None in the forward pass itself

    def wrap(self, function: Callable) -> Callable:
        first = True

        def run(*args: Any) -> Any:
            nonlocal first
            if first:
                first = False
                with _set(_region, self):
                    return function(*args)
            self.recomputed = iter(self.numbers)
            configs = [config for session in self.sessions for config in configs_of(session)]
            _install(configs)
            try:
                with _set(_active, self.sessions), _set(_region, self):
                    return function(*args)
            finally:
                _uninstall(configs)

        return run


@contextmanager
def _set(variable: ContextVar, value: Any) -> Iterator[None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def _in_backward() -> bool:
    return torch._C._current_graph_task_id() != -1


# ---- the wrapper


def _door(backend: str) -> Callable:
    """The wrapper of one backend."""

    def attend(
        module: nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: Any,  # some models pass it by this name
        **arguments: Any,
    ) -> tuple[torch.Tensor, Any]:
        function = backend_of(module, backend)
        sessions = [session for session in _active.get() if module in session.layers]
        if not sessions:
            if _in_backward() and _region.get() is None:
                _refuse_unseen_recomputation(module)
            return function(module, query, key, value, attention_mask, **arguments)
        _refuse_compiled_call(module)
        if any(session.alters for session in sessions):
            _refuse_unknown_checkpoint(module)
        call = AttentionCall(module, query, key, value, attention_mask, arguments)
        return _attend(function, call, sessions)

    # A graph that is being compiled must not swallow the wrapper, with what was active at that moment.
    return torch.compiler.disable(
        attend, recursive=False, reason="qkvit sees attention: call the model as it was before torch.compile"
    )


def _attend(function: Callable, call: AttentionCall, sessions: list[Session]) -> tuple[torch.Tensor, Any]:
    numbers, again = _numbers(call, sessions)
    call.edited = tuple(
        target
        for target in (*MAPS, "output")
        if any(session.replaces(session.layers[call.module], target) for session in sessions)
    )

    def edited(target: str, tensor: torch.Tensor) -> torch.Tensor:
        for session, number in zip(sessions, numbers, strict=True):
            call.number = number
            tensor = session.edit(target, tensor, call)
        return tensor

    call.query, call.key, call.value = (edited(name, getattr(call, name)) for name in ("query", "key", "value"))
    seen: dict[str, torch.Tensor] = {}
    if any(session.needs_maps(session.layers[call.module]) for session in sessions):
        seen["scores"] = call.masked(edited("scores", call.scores()))
        seen["attention"] = weights = edited("attention", call.weights(seen["scores"]))
        output = call.output(weights)  # (B, H, N, D)
    else:
        # Backends give (B, N, H, D). Transposing twice leaves the strides, and so every later operation, as they were.
        output, weights = function(call.module, call.query, call.key, call.value, call.mask, **call.arguments)
        output = output.transpose(1, 2)
    seen["output"] = output = edited("output", output)
    if not again:
        for session, number in zip(sessions, numbers, strict=True):
            call.number = number
            session.see(call, seen)
    return output.transpose(1, 2), weights


def _numbers(call: AttentionCall, sessions: list[Session]) -> tuple[tuple[int, ...], bool]:
    """Which call of its layer this is, for each session; whether it is a recomputation."""
    region = _region.get()
    if region is not None and region.recomputed is not None:
        return next(region.recomputed), True
    layers = [session.layers[call.module] for session in sessions]
    if region is None and _in_backward():  # checkpointed by something that was not told to take the sessions along
        return tuple(max(0, session.calls[layer] - 1) for session, layer in zip(sessions, layers, strict=True)), True
    numbers = tuple(session.calls[layer] for session, layer in zip(sessions, layers, strict=True))
    for session, layer in zip(sessions, layers, strict=True):
        session.calls[layer] += 1
    if region is not None:
        region.numbers.append(numbers)
    return numbers, False


def _refuse_unseen_recomputation(module: nn.Module) -> None:
    if any(session.alters and module in session.layers for session in list(_open)):
        raise ValueError(
            f"{type(module).__name__} is computed again in the backward pass, where an edit of its forward pass does"
            " not reach it: enable gradient checkpointing before the context is entered"
        )


def _refuse_unknown_checkpoint(module: nn.Module) -> None:
    """Refuse an edit in a pass whose recomputation would not know of it: gradients would be those of another model."""
    frame = None if _region.get() is not None or _in_backward() else sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == checkpoint.__file__:
            raise ValueError(
                f"{type(module).__name__} is computed again in the backward pass, where its edits would be lost: enable"
                " gradient checkpointing by model.gradient_checkpointing_enable(), before the context is entered"
            )
        frame = frame.f_back


def _refuse_compiled_call(module: nn.Module) -> None:
    """Refuse to be called from a graph of torch.compile: its other operations are not those of the plain model."""
    if torch.compiler.is_compiling() or (dynamo_callback is not None and dynamo_callback() not in (None, False)):
        raise ValueError(
            f"{type(module).__name__} is run by torch.compile, where it may bypass what records and edits: call the"
            " model as it was before torch.compile"
        )


def _check_backend(module: nn.Module) -> None:
    config: Any = module.config
    backend_of(module, (config._attn_implementation or "eager").removesuffix(_SUFFIX))


# ---- putting the wrapper in and taking it out


class _Place:
    """A config whose implementation is replaced, or a module whose checkpointing is; and how many need it so."""

    def __init__(self, owner: Any) -> None:
        self.owner = owner
        self.name = "_gradient_checkpointing_func" if isinstance(owner, nn.Module) else "_attn_implementation_internal"
        self.before: Any = None
        self.users = 0

    def put_in(self) -> None:
        now = getattr(self.owner, self.name)
        if not self.is_ours(now):
            self.before = now
            ours = _Checkpoint(now) if isinstance(self.owner, nn.Module) else _registered(now or "eager")
            setattr(self.owner, self.name, ours)
        elif not self.users:  # copied from a model while a session was open on that one
            self.before = now.function if isinstance(now, _Checkpoint) else now.removesuffix(_SUFFIX)
        self.users += 1

    def take_out(self) -> None:
        self.users -= 1
        if not self.users and self.is_ours(getattr(self.owner, self.name)):  # not what was set in the meantime
            setattr(self.owner, self.name, self.before)

    @staticmethod
    def is_ours(now: Any) -> bool:
        return isinstance(now, _Checkpoint) or (isinstance(now, str) and _is_door(now))


_lock = threading.RLock()
_places: dict[int, _Place] = {}


def _install(owners: list[Any]) -> None:
    with _lock:
        for owner in owners:
            _places.setdefault(id(owner), _Place(owner)).put_in()


def _uninstall(owners: list[Any]) -> None:
    with _lock:
        for owner in owners:
            place = _places[id(owner)]
            place.take_out()
            if not place.users:
                del _places[id(owner)]


def _checkpointing(model: nn.Module) -> list[nn.Module]:
    return [module for module in every_module(model) if "_gradient_checkpointing_func" in vars(module)]


def _is_door(name: str | None) -> bool:
    return name is not None and name.endswith(_SUFFIX)


def _registered(backend: str) -> str:
    """The wrapper's name; registered when it is first asked for."""
    name = backend + _SUFFIX
    if name not in ALL_ATTENTION_FUNCTIONS:
        AttentionInterface.register(name, _door(backend))
    if backend in ALL_MASK_ATTENTION_FUNCTIONS and name not in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, lambda *args, **kw: ALL_MASK_ATTENTION_FUNCTIONS[backend](*args, **kw))
    return name


class _Checkpoint:
    """A checkpointing function that takes the sessions of the forward pass along to the recomputation."""

    def __init__(self, function: Callable) -> None:
        self.function = function

    def __call__(self, layer_function: Callable, *args: Any, **kwargs: Any) -> Any:
        return self.function(_Region(_active.get()).wrap(layer_function), *args, **kwargs)
