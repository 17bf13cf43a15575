"""Values from YAML and from the command line, fitted to annotated types; unknown names, with the nearest known one."""

import difflib
import re
import types
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from .errors import TrainingRefusedError

_EXPONENT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+")


def fit(value: Any, hint: Any, where: str) -> Any:
    """`value` as the type that `hint` names, or `TrainingRefusedError`.

    YAML reads 1e-3 as text; where a number is wanted, it becomes one. Nothing else is guessed.

    Example:

    ```python
    >>> fit("1e-3", float, "learning_rate"), fit(None, int | None, "seed"), fit([1, 2], tuple[float, float], "scale")
    (0.001, None, (1.0, 2.0))
    >>> fit("many", int, "epochs")
    Traceback (most recent call last):
    ...
    qkvit.training.errors.TrainingRefusedError: epochs='many' is not a whole number; write one

    ```
    """
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _fit_union(value, arguments, where)
    if origin is Literal:
        if value not in arguments or isinstance(value, bool) != any(isinstance(one, bool) for one in arguments):
            raise TrainingRefusedError(
                f"{where}={value!r} is not known; write {_or(arguments)}{nearest(value, arguments)}"
            )
        return value
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, where)
    if origin in (list, tuple):
        return _fit_sequence(value, origin, arguments, where)
    if hint in (dict, Mapping) or origin in (dict, Mapping):
        if not isinstance(value, Mapping):
            raise TrainingRefusedError(f"{where}={value!r} is not a mapping; write lines of the form name: value")
        return dict(value) if where == "arguments" else {name: _with_exponent(one) for name, one in value.items()}
    return _fit_scalar(value, hint, where)


def _fit_union(value: Any, options: tuple[Any, ...], where: str) -> Any:
    if value is None and type(None) in options:
        return None
    refusal = None
    if any(isinstance(option, type) and issubclass(option, Enum) for option in options):
        options = tuple(option for option in options if option is not str)  # any text would fit
    for option in sorted((each for each in options if each is not type(None)), key=lambda each: each is str):
        try:
            return fit(value, option, where)
        except TrainingRefusedError as error:
            refusal = refusal or error
    raise refusal or TrainingRefusedError(f"{where} takes no value; leave it out")


def _fit_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], where: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise TrainingRefusedError(f"{where}={value!r} is not a list; write [first, second, ...]")
    if origin is list:
        return [fit(one, arguments[0] if arguments else Any, f"{where}[{i}]") for i, one in enumerate(value)]
    if len(arguments) != len(value):
        raise TrainingRefusedError(
            f"{where}={value!r} has {len(value)} values and not {len(arguments)}; write that many"
        )
    return tuple(fit(one, hint, f"{where}[{i}]") for i, (one, hint) in enumerate(zip(value, arguments, strict=True)))


def _fit_scalar(value: Any, hint: Any, where: str) -> Any:
    if hint is bool:
        if not isinstance(value, bool):
            raise TrainingRefusedError(f"{where}={value!r} is neither true nor false; write one of them")
        return value
    if hint in (int, float):
        number = _number(value)
        if number is None or number != number or (hint is int and not float(number).is_integer()):
            kind = "whole number" if hint is int else "number"
            raise TrainingRefusedError(f"{where}={value!r} is not a {kind}; write one")
        return hint(number)
    if hint is str:
        if not isinstance(value, str):
            raise TrainingRefusedError(f"{where}={value!r} is not text; put it into quotation marks")
        return value
    if isinstance(hint, type) and issubclass(hint, Enum):
        known = [one.value for one in hint]
        value = "no" if value is False else value  # so YAML reads a bare no
        if value not in known:
            raise TrainingRefusedError(f"{where}={value!r} is not known; write {_or(known)}{nearest(value, known)}")
        return value
    return value  # a type of another library: it checks for itself


def _with_exponent(value: Any) -> Any:
    """1e-3 as the number that it is, where no type says so; all other text as it is."""
    return float(value) if isinstance(value, str) and _EXPONENT.fullmatch(value) else value


def _number(value: Any) -> int | float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def build(kind: Any, values: Any, where: str) -> Any:
    """An object of the dataclass `kind` from a mapping of its fields."""
    if not isinstance(values, Mapping):
        raise TrainingRefusedError(f"{where or 'the recipe'} is not a mapping; write lines of the form name: value")
    hints = get_type_hints(kind)
    known = {field.name for field in fields(kind)}
    for name in values:
        if name not in known:
            raise unknown(name, known, where)
    for field in fields(kind):
        if field.default is MISSING and field.default_factory is MISSING and field.name not in values:
            raise TrainingRefusedError(f"{_join(where, field.name)} is missing; write it")
    return kind(**{name: fit(value, hints[name], _join(where, name)) for name, value in values.items()})


# What fields are called in other programs.
ELSEWHERE = {
    "batch_size": "per_device_train_batch_size",
    "epochs": "num_train_epochs",
    "lr": "learning_rate",
    "steps": "max_steps",
    "wd": "weight_decay",
    "workers": "dataloader_num_workers",
}


def unknown(name: Any, known: Iterable[str], where: str = "") -> TrainingRefusedError:
    """The sentence about a name that there is not.

    Example:

    ```python
    >>> print(unknown("learning_rat", ["learning_rate", "seed"], "arguments"))
    arguments.learning_rat is not known; did you mean learning_rate?

    ```
    """
    names = list(known)
    meant = ELSEWHERE.get(str(name))
    near = [meant] if meant in names else difflib.get_close_matches(str(name), names, n=1, cutoff=0.0)
    return TrainingRefusedError(
        f"{_join(where, str(name))} is not known; did you mean {near[0] if near else 'another'}?"
    )


def nearest(value: Any, known: Iterable[Any]) -> str:
    """What may have been meant, in brackets; nothing where no name is near."""
    near = difflib.get_close_matches(str(value), [str(one) for one in known], n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _or(values: Iterable[Any]) -> str:
    return " or ".join(map(str, values))


def _join(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
