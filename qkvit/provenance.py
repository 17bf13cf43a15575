"""What a result depends on, for the JSON beside it: when, with which versions, and on which machine."""

import os
import platform
import shlex
from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import Any

from .version import __version__

PACKAGES = ("torch", "transformers", "numpy", "pillow")


def provenance(command: str, seed: int, device: Any = "cpu", packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Command, date, seed, versions and machine.

    Args:
        command: What was typed.
        device: Where the model ran, as torch names it.
        packages: What the result depends on besides `PACKAGES`, as PyPI names it.

    Example:

    ```python
    >>> sorted(provenance("qkvit quickstart", seed=0))
    ['command', 'date', 'machine', 'seed', 'versions']

    ```
    """
    import torch

    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "command": command,
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "seed": seed,
        "versions": {
            "qkvit": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in (*PACKAGES, *packages)},
        },
        "machine": {
            "system": platform.system(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device) if name is None else f"{device} ({name})",
        },
    }


def command_line(name: str, model: str, options: Mapping[str, Any]) -> str:
    """What can be typed to get the same: an option that is None or False is left out, one that is True is a flag.

    Example:

    ```python
    >>> command_line("evaluate", "my/model", {"split": "test", "batch_size": 8, "by_index": True, "device": None})
    'qkvit evaluate my/model --split test --batch-size 8 --by-index'

    ```
    """
    words = ["qkvit", name, model]
    for option, value in options.items():
        flag = f"--{option.replace('_', '-')}"
        if value is not None and value is not False:  # 0 is a seed
            words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def in_a_line(record: dict[str, Any]) -> str:
    """The same for the edge of a picture."""
    return f"{record['command']}, qkvit {record['versions']['qkvit']}, {record['date']}"
