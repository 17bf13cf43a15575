"""Say in one sentence what is wrong with a configuration: the field, its value, and what would do."""

import dataclasses
import functools
import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

_WORDS = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a name",
    list[int]: "a list of integers",
    list[str]: "a list of names",
    tuple[int, int]: "a pair (height, width)",
    dict[str, str]: "a mapping of names",
    types.NoneType: "None",
}


def shown(value: Any) -> str:
    """A value as an error message shows it: on one line, cut where it is long.

    Example:

    ```python
    >>> shown("learned"), len(shown(list(range(1000))))
    ("'learned'", 80)

    ```
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else f"{text[:76]} ..."


def _expected(annotation: Any) -> list[str]:
    """What an annotation allows, in words."""
    if get_origin(annotation) in (Union, types.UnionType):
        words = [word for choice in get_args(annotation) for word in _expected(choice)]
        return [word for word in words if not (word == "an integer" and "a number" in words)]
    if get_origin(annotation) is Literal:
        return [repr(choice) for choice in get_args(annotation)]
    return [_WORDS.get(annotation, str(annotation))]


def type_error(name: str, value: Any, annotation: Any, default: Any) -> str:
    """The sentence for a value of the wrong type.

    Example:

    ```python
    >>> print(type_error("hidden_size", "big", int, 768))
    hidden_size='big' is not an integer; pass hidden_size=768, say

    ```
    """
    name = name.removeprefix("_")
    way_out = f"leave {name} out for its default" if default is None else f"pass {name}={default!r}, say"
    return f"{name}={shown(value)} is not {' or '.join(_expected(annotation))}; {way_out}"


def check_config_file(path: Path) -> None:
    """Raise an `OSError` of one sentence if a configuration's file is not there or holds something else.

    Example:

    ```python
    >>> check_config_file(Path("no/such/folder/config.json"))
    Traceback (most recent call last):
    ...
    OSError: no/such/folder is no model: it has no config.json; pass a folder that save_pretrained wrote

    ```
    """
    if not path.is_file():
        raise OSError(f"{path.parent} is no model: it has no {path.name}; pass a folder that save_pretrained wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or no UTF-8
        reason = " ".join(str(error).split())
        raise OSError(f"{path} is damaged: it is no JSON ({reason}); copy, download or save it again") from error
    if not isinstance(content, dict):
        raise OSError(
            f"{path} is no configuration: it holds {shown(content)}, not a JSON object of fields; copy, download or"
            " save it again"
        )


def with_plain_errors(cls: type) -> type:
    """Raise one-sentence `ValueError`s where `strict` raises two-line errors of its own class."""

    def plain(method: Callable) -> Callable:
        @functools.wraps(method)
        def wrapper(self: Any, *args: Any) -> None:
            try:
                method(self, *args)
            except StrictDataclassClassValidationError as error:
                raise ValueError(" ".join(str(error.__cause__).split())) from error
            except StrictDataclassFieldValidationError as error:
                name, value = args  # of __setattr__
                field: dataclasses.Field = self.__dataclass_fields__[name]
                raise ValueError(type_error(name, value, field.type, field.default)) from error

        return wrapper

    for name in ("__setattr__", "validate"):
        setattr(cls, name, plain(getattr(cls, name)))
    return cls
