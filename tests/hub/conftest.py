"""A Hub on this machine, and processes that know no other one."""

import importlib.util
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

_spec = importlib.util.spec_from_file_location("local_hub", Path(__file__).with_name("local_hub.py"))
_local_hub = importlib.util.module_from_spec(_spec)
sys.modules["local_hub"] = _local_hub  # dataclasses look for their module there
_spec.loader.exec_module(_local_hub)

CLASSES = ("blue", "red")
TRAIN, TEST = 18, 6

PUSH_OTHERS = """
from pathlib import Path
import datasets
from transformers import ViTConfig, ViTForImageClassification, ViTImageProcessor

features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["blue", "red"])})

def rows(split):
    for path in sorted(Path("photos", split).iterdir()):
        yield {"image": str(path), "label": path.stem.split("-")[1]}

splits = {name: datasets.Dataset.from_list([*rows(name)], features=features) for name in ("train", "test")}
datasets.DatasetDict(splits).push_to_hub("me/photos", num_shards={"train": 2, "test": 1})

config = ViTConfig(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=4,
    id2label={0: "blue", 1: "red"}, label2id={"blue": 0, "red": 1},
)
ViTForImageClassification(config).push_to_hub("me/vit")
ViTImageProcessor(size={"height": 16, "width": 16}).push_to_hub("me/vit")
"""

# Runs several commands in one process: it takes seconds to start one. Each has a working folder of its own.
COMMANDS = """
import contextlib, io, json, os, pathlib, time, urllib.request

time.sleep = lambda seconds: None  # the Hub's client waits between its tries
from qkvit.cli import main

work = pathlib.Path.cwd()
for number, arguments in enumerate(json.loads((work / "commands.json").read_text())):
    folder = work / str(number)
    folder.mkdir()
    os.chdir(folder)
    (folder / "recipe.yaml").write_text(
        "{data: {source: me/photos, train_split: train}, arguments: {max_steps: 1, output_dir: out}}"
    )
    output, errors, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            if arguments == ["revive"]:
                urllib.request.urlopen(os.environ["HF_ENDPOINT"] + "/revive").close()
            else:
                main(arguments)
        except SystemExit as leaving:
            code = leaving.code
        except BaseException as error:
            errors.write(f"{type(error).__name__}: {error}")
    (work / f"{number}.json").write_text(json.dumps([code, output.getvalue(), errors.getvalue()]))
"""

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


@pytest.fixture(scope="session")
def hub(tmp_path_factory) -> Iterator[_local_hub.LocalHub]:
    """An empty Hub."""
    hub = _local_hub.LocalHub(tmp_path_factory.mktemp("hub"))
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def process(hub, start_python) -> Callable[..., subprocess.CompletedProcess]:
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
            "no_proxy": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
        }
        return start_python(*arguments, folder=folder, environment=environment)()

    return run


@pytest.fixture(scope="session")
def python(process) -> Callable[..., str]:
    """`python(folder, script, installed=True)`: what a script prints, in a process with or without the package."""

    def run(folder: Path, script: str, *arguments: object, installed: bool = True) -> str:
        (folder / "script.py").write_text(script if installed else BLOCK + script)
        done = process(folder, folder / "script.py", *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


@pytest.fixture(scope="session")
def qkvit_command(process) -> Callable[..., subprocess.CompletedProcess]:
    """`qkvit_command(folder, "evaluate", "me/tiny", ...)`, with its returncode, stdout and stderr."""
    return lambda folder, *arguments: process(folder, "-m", "qkvit", *arguments)


class Answer(NamedTuple):
    """What came of a command."""

    folder: Path
    code: int | None
    output: str
    errors: str


@pytest.fixture(scope="session")
def qkvit_commands(python) -> Callable[..., list[Answer]]:
    """`qkvit_commands(folder, [["evaluate", "me/tiny", ...], ...])`: the same for several, in one process."""

    def run(work: Path, commands: list[list[str]]) -> list[Answer]:
        (work / "commands.json").write_text(json.dumps(commands))
        python(work, COMMANDS)
        numbers = range(len(commands))
        return [Answer(work / str(n), *json.loads((work / f"{n}.json").read_text())) for n in numbers]

    return run


@pytest.fixture(scope="session")
def put(hub) -> Callable[..., str]:
    """`put("me/tiny", folder)`: the files of a folder as a model on the Hub; the id of the commit."""

    def run(name: str, folder: Path) -> str:
        return hub.commit(name, {path.name: hub.store(path.read_bytes()) for path in folder.iterdir()}).id

    return run


@pytest.fixture(scope="session")
def tiny(put, tiny_model, tmp_path_factory) -> str:
    """me/tiny on the Hub, which tells blue from red; the id of its commit."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model(id2label=dict(enumerate(CLASSES)), num_labels=2).save_pretrained(folder)
    return put("me/tiny", folder)


@pytest.fixture(scope="session")
def photos(hub, python, tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """me/photos on the Hub, as `datasets` pushes it, and its pictures; me/vit of transformers too."""
    work = tmp_path_factory.mktemp("photos")
    pictures: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    for number in range(TRAIN + TEST):
        split = "train" if number < TRAIN else "test"
        pixels = np.random.default_rng(number).integers(0, 120, (18, 20, 3), dtype=np.uint8)
        pixels[..., 2 * (number % 2 == 0)] += 120  # blue, red, blue, ...
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "png")
        path = work / "photos" / split / f"{number:02d}-{CLASSES[number % 2]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.getvalue())
        pictures[split].append(pixels)
    python(work, PUSH_OTHERS)
    return pictures
