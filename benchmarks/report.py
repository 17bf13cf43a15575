"""What every result file says first: when, by which command, on what machine, with which versions."""

import datetime
import importlib
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch


def heading(device: str = "cpu", *others: str, command: str | None = None) -> dict[str, Any]:
    """The date, the command (this one, unless given), the device, its load now, and the versions of what was used.

    Args:
        others: Packages beside torch, transformers and QKViT.
        command: Where an argument is of no use to a reader, such as a folder of the author's.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads, {cpu_name()}"
    versions = {"python": platform.python_version()}
    versions |= {
        name: importlib.import_module(name).__version__ for name in ("torch", "qkvit", "transformers", *others)
    }
    return {
        "date": datetime.date.today().isoformat(),
        "command": command or " ".join(["python", *sys.argv]),
        "device": name,
        "load_average": os.getloadavg()[0],
        "versions": versions,
    }


def cpu_name() -> str:
    """As Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def write(path: Path | None, report: dict[str, Any]) -> None:
    """As JSON, over what is there; nothing without a path. Call it after each row: what was measured is kept."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
