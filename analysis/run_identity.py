"""What a run of `collect` is, as values for JSON: progress of another run is not taken for its own."""

import hashlib
import json
import re
from dataclasses import asdict
from types import CodeType
from typing import Any

import torch

from .token_layout import TokenLayout

# Of a configuration: what a saved and loaded model has otherwise, and what changes no number but by rounding.
_NO_MATTER = {"_name_or_path", "architectures", "auto_map", "transformers_version", "dtype", "torch_dtype"}


def identity_of(
    dataloader: Any, fingerprint: str, layout: TokenLayout | None, class_names: tuple[str, ...] | None
) -> dict[str, Any]:
    """Model, data, the order of its images, what makes pixel values of an image, layout and class names.

    Args:
        dataloader: As `collect` takes it; of one that is not ours, the order and a data set's `transform` are all that
            is known, and of a plain list nothing is.
        fingerprint: Of the model's weights.

    Raises:
        ValueError: the images come in another order each time.
    """
    source = getattr(dataloader, "source", None)
    return {
        "model": fingerprint,
        "data": None if source is None else source.describe() | {"sizes": getattr(source, "sizes_digest", "")},
        "batches": {name: getattr(dataloader, name, None) for name in ("batch_size", "images", "seed")},
        "order": _order_of(dataloader),
        "transform": described(_transform_of(dataloader)),
        "layout": None if layout is None else {name: it for name, it in asdict(layout).items() if it is not None},
        "class names": class_names,
    }


def settings_of(config: Any) -> Any:
    """A model's configuration, for the weights alone do not say what is computed of them.

    Example:

    ```python
    >>> from qkvit import QKViTConfig
    >>> settings_of(QKViTConfig(hidden_act="relu", dtype="bfloat16"))["hidden_act"]
    'relu'

    ```
    """
    return _without(json.loads(config.to_json_string(use_diff=False)))


def _without(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {name: _without(value[name]) for name in value if name not in _NO_MATTER}


def described(transform: Any) -> Any:
    """An image processor's settings; a function's name, with a digest of its code; what another callable shows.

    What a function takes from outside itself is not seen.

    Example:

    ```python
    >>> from functools import partial
    >>> described(partial(max, key=abs))
    'functools.partial(<built-in function max>, key=<built-in function abs>)'

    ```
    """
    if transform is None:
        return None
    if hasattr(transform, "to_json_string"):
        return json.loads(transform.to_json_string())
    name = re.sub(r" at 0x[0-9a-fA-F]+", "", repr(transform))  # places in memory differ from run to run
    code = getattr(transform, "__code__", None)
    return name if code is None else f"{name} {_digest(code)}"


def difference(name: str, before: Any, now: Any) -> str:
    """What has changed, in a few words; of two dictionaries, their first entry that differs.

    Example:

    ```python
    >>> difference("batches", {"seed": 0, "images": None}, {"seed": 0, "images": 3})
    'batches: images was None and is 3 now'

    ```
    """
    if isinstance(before, dict) and isinstance(now, dict):
        key = next((key for key in (before | now) if before.get(key) != now.get(key)), None)
        if key is None:  # one of them says a None that the other leaves out
            return f"{name}: other settings"
        return difference(f"{name}: {key}", before.get(key), now.get(key))
    return f"{name} was {_shortened(before)} and is {_shortened(now)} now"


def _transform_of(dataloader: Any) -> Any:
    found = getattr(dataloader, "transform", None)
    return found if found is not None else getattr(getattr(dataloader, "dataset", None), "transform", None)


def _order_of(dataloader: Any) -> list[Any]:
    """What the sampler of a torch DataLoader draws from: the state of its generator, or seed and epoch."""
    sampler = getattr(getattr(dataloader, "batch_sampler", None), "sampler", getattr(dataloader, "sampler", None))
    generator = getattr(sampler, "generator", None)
    if generator is None and hasattr(sampler, "generator"):
        raise ValueError(
            f"the dataloader's {type(sampler).__name__} draws another order each time, and a run that goes on would"
            " count images twice; pass shuffle=False, or a generator with a seed"
        )
    state = generator.get_state().numpy().tobytes() if isinstance(generator, torch.Generator) else b""
    return [hashlib.sha256(state).hexdigest()[:8], getattr(sampler, "seed", None), getattr(sampler, "epoch", None)]


def _digest(code: CodeType) -> str:
    # Of the code itself: every lambda has the same name, and a line that moved changes nothing.
    return hashlib.sha256(repr(_of_code(code)).encode()).hexdigest()[:8]


def _of_code(code: CodeType) -> list[Any]:
    constants: list[Any] = []
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            constants.append(_of_code(constant))
        else:  # the order of a set differs from run to run
            constants.append(sorted(map(repr, constant)) if isinstance(constant, frozenset) else constant)
    return [code.co_code, code.co_names, constants]


def _shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:99]}…"
