"""Where and with what a benchmark was run: part of every report."""

import importlib
import os
import platform
from pathlib import Path
from typing import Any

import torch


def machine(device: str = "cpu", *others: str) -> dict[str, Any]:
    """The device, the load when asked, and the versions of what is always in play and of `others`."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"{torch.get_num_threads()} threads, {cpu_name()}"
    versions = {"python": platform.python_version()}
    versions |= {
        name: importlib.import_module(name).__version__ for name in ("torch", "qkvit", "transformers", *others)
    }
    return {"device": name, "load_average": os.getloadavg()[0], "versions": versions}


def cpu_name() -> str:
    """As Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
