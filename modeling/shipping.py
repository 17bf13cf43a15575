"""Ship the code with a model: what `trust_remote_code=True` loads where qkvit is not installed.

transformers' loader wants flat files that import each other by `from .name import`, beside the weights. The sources
are in two folders here, so they are copied and the import that crosses folders is rewritten. A class that was itself
loaded from such files is flat already; transformers copies those on its own.
"""

import ast
import functools
import re
from pathlib import Path
from typing import Any

from ..configuration.configuration_qkvit import QKViTConfig
from . import modeling_qkvit

AUTO_MAP = {
    "AutoConfig": "configuration_qkvit.QKViTConfig",
    "AutoModel": "modeling_qkvit.QKViTModel",
    "AutoModelForImageClassification": "modeling_qkvit.QKViTForImageClassification",
    "AutoModelForMaskedImageModeling": "modeling_qkvit.QKViTForMaskedImageModeling",
    "AutoBackbone": "modeling_qkvit.QKViTBackbone",
}

_HEADER = "# Part of QKViT: this file travels with the model, for trust_remote_code=True.\n"


@functools.cache  # a third of a second, and a run saves often
def flat_sources() -> dict[str, str]:
    """File name -> text of every source file that a saved model needs.

    Example:

    ```python
    >>> "from .configuration_qkvit import QKViTConfig" in flat_sources()["modeling_qkvit.py"]
    True

    ```
    """
    sources: dict[str, str] = {}
    waiting = [Path(modeling_qkvit.__file__)]
    while waiting:
        path = waiting.pop()
        if path.name in sources:
            continue
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and node.level:
                folder = path.parents[node.level - 1]
                waiting.append(folder.joinpath(*(node.module or "").split(".")).with_suffix(".py"))
        sources[path.name] = _HEADER + re.sub(
            r"^from \.\.\w+\.(\w+) import", r"from .\1 import", text, flags=re.MULTILINE
        )
    return sources


def ship_code(config: QKViTConfig, folder: str | Path) -> None:
    """Write the code into `folder` and name it in `config.auto_map`, beside what transformers has written there.

    A class of the user's own, with `register_for_auto_class`, is there already, and keeps its place.
    """
    folder = Path(folder)
    if folder.is_file():
        return  # transformers' own error names the problem
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in flat_sources().items():
        (folder / name).write_text(text, encoding="utf-8")
    own = {
        auto_class: name
        for auto_class, name in (getattr(config, "auto_map", None) or {}).items()
        if isinstance(name, str)
        and (file := f"{name.split('.')[0]}.py") not in flat_sources()
        and (folder / file).is_file()
    }
    config.auto_map: Any = AUTO_MAP | own  # type: ignore[misc]
