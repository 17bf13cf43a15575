"""Arguments of functions, named in a sentence, as the options of a command."""

import re
from collections.abc import Iterable, Mapping

_VALUE = r"""'[^']*'|"[^"]*"|\[[^\]]*\]|-?[\w.]+"""


def as_options(sentence: str, options: Iterable[str], other: Mapping[str, str] | None = None) -> str:
    """A sentence about Python's arguments, about those options of the command line that have their names.

    Args:
        options: Their names as arguments of the command's function.
        other: Options of other names, by the argument that they stand for.

    Example:

    ```python
    >>> as_options("remove it, or pass on_bad_image='skip'", ["on_bad_image"])
    'remove it, or pass --on-bad-image skip'
    >>> as_options("family='vitt' is not known; or leave label out", ["label", "to"], {"family": "to"})
    '--to vitt is not known; or leave --label out'

    ```
    """
    flags = {name: f"--{name.replace('_', '-')}" for name in options}
    flags |= {name: flags[option] for name, option in (other or {}).items() if option in flags}
    if not flags:
        return sentence
    name = rf"(?<![\w./\\-])(?<!--set )({'|'.join(flags)})"

    def written(match: re.Match[str]) -> str:
        value = match[2].strip("'\"[]").replace(", ", ",")
        return flags[match[1]] + ("" if value == "True" else f" {value}")

    sentence = re.sub(rf"\bpass {name}=False\b", lambda match: f"leave {flags[match[1]]} out", sentence)
    sentence = re.sub(rf"{name}=({_VALUE})", written, sentence)
    sentence = re.sub(rf"\bleave {name} out\b", lambda match: f"leave {flags[match[1]]} out", sentence)
    if "split" in flags:
        sentence = re.sub(r"\bas split\b", "with --split", sentence)
    return sentence.replace("or None for all", "or leave it out for all")
