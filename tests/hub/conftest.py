"""A Hub on this machine, and processes that know no other one."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_spec = importlib.util.spec_from_file_location("local_hub", Path(__file__).with_name("local_hub.py"))
_local_hub = importlib.util.module_from_spec(_spec)
sys.modules["local_hub"] = _local_hub  # dataclasses look for their module there
_spec.loader.exec_module(_local_hub)

# Runs before a script where the package is not to be found.
BLOCK = '''
import sys

class Blocked:
    """qkvit cannot be imported here."""
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "qkvit":
            raise ModuleNotFoundError("qkvit is not installed here")

sys.meta_path.insert(0, Blocked())
'''


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Iterator[_local_hub.LocalHub]:
    """An empty Hub."""
    hub = _local_hub.LocalHub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.close()


@pytest.fixture(scope="module")
def process(hub) -> Callable[..., subprocess.CompletedProcess]:
    """`process(folder, *arguments)`: a Python process in a folder, which also holds its HF_HOME.

    huggingface_hub reads its environment when it is imported, so nothing of it can be changed in a test's own process.
    """

    def run(folder: Path, *arguments: object) -> subprocess.CompletedProcess:
        others = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST"))}
        environment = {
            **others,
            "HOME": str(folder),
            "XDG_CACHE_HOME": str(folder / "cache"),
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": "x",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        command = [sys.executable, *map(str, arguments)]
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)

    return run


@pytest.fixture(scope="module")
def python(process) -> Callable[..., str]:
    """`python(folder, script, installed=True)`: what a script prints, in a process with or without the package."""

    def run(folder: Path, script: str, *arguments: object, installed: bool = True) -> str:
        (folder / "script.py").write_text(script if installed else BLOCK + script)
        done = process(folder, folder / "script.py", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="module")
def qkvit_command(process) -> Callable[..., subprocess.CompletedProcess]:
    """`qkvit_command(folder, "evaluate", "me/tiny", ...)`, with its returncode, stdout and stderr."""
    return lambda folder, *arguments: process(folder, "-m", "qkvit", *arguments)
