"""Which label of a model is which class of a data set: matched by name, for the order of both is anybody's."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from .errors import UserError

_NAMELESS = re.compile(r"label[ _]?\d+")


def plain(name: str) -> str:
    """A name without what people spell differently: case, underscores, hyphens, spaces at the ends.

    Example:

    ```python
    >>> plain("T-Shirt_long ")
    't shirt long'

    ```
    """
    return " ".join(re.sub(r"[_\-]+", " ", name).casefold().split())


def match_labels(class_names: Sequence[str], id2label: Mapping[int, str]) -> list[int]:
    """For each class of the data, the model's index of the same name.

    The model may know more classes than the data has.

    Raises:
        UserError: a class is unknown to the model, or its name stands for several of the model's labels.

    Example:

    ```python
    >>> match_labels(["Dog", "cat"], {0: "cat", 1: "cow", 2: "dog"})
    [2, 0]

    ```
    """
    labels = [str(id2label[index]) for index in sorted(id2label)]
    if list(class_names) == labels:
        return list(range(len(labels)))
    for spelled in (str, plain):  # to the letter where that is possible
        indices = {spelled(label): index for index, label in enumerate(labels)}
        counts = Counter(map(spelled, labels))
        names = list(map(spelled, class_names))
        if all(counts[name] == 1 for name in names) and len(set(names)) == len(names):
            return [indices[name] for name in names]
    raise UserError(_why_not(class_names, labels))


def _why_not(class_names: Sequence[str], labels: Sequence[str]) -> str:
    counts = Counter(map(plain, labels))
    unknown = [name for name in class_names if not counts[plain(name)]]
    if not unknown:
        twice = next(
            (name for name in class_names if counts[plain(name)] > 1),
            max(class_names, key=list(map(plain, class_names)).count),
        )
        return (
            f"the name {twice!r} stands for several labels, so that data and model cannot be matched by name; rename"
            " them, or pass --by-index if label 0 of the data is label 0 of the model, and so on"
        )
    if all(_NAMELESS.fullmatch(plain(label)) for label in labels):
        return (
            f"the model's labels have no names (its config.json has {some(labels)}) and the data's are"
            f" {some(class_names)}; write id2label into config.json, or pass --by-index if label 0 of the data is label"
            " 0 of the model, and so on"
        )
    return (
        f"{len(unknown)} of the data's {len(class_names)} classes are unknown to the model: {some(unknown)}, where the"
        f" model has {some(labels)}; evaluate a model of these classes, or rename them"
    )


def some(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many there are.

    Example:

    ```python
    >>> some(["a", "b", "c"], most=2)
    'a, b and 1 more'

    ```
    """
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
