"""What lands in a user's site-packages, and what `import qkvit` costs."""

import json
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configuration", "modeling", "data", "analysis", "training", "study", "sharing")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built from a copy, so that no old build/ of the checkout gets into it."""
    source = tmp_path_factory.mktemp("source")
    for file in ("setup.py", "pyproject.toml", "LICENSE", "README.md"):
        if (ROOT / file).is_file():
            shutil.copy(ROOT / file, source)
    for folder in ("qkvit", *FOLDERS, "tests"):
        if (ROOT / folder).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "common_suite")
            shutil.copytree(ROOT / folder, source / folder, ignore=ignored)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", source / "dist", source]
    built = subprocess.run(build, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = (source / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel):
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def test_the_wheel_installs_nothing_but_qkvit(wheel, metadata):
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert top_level == {"qkvit", f"qkvit-{metadata['Version']}.dist-info"}


def test_the_wheel_holds_every_module_of_every_folder(wheel):
    expected = {
        f"qkvit/{path.relative_to(ROOT / 'qkvit' if folder == 'qkvit' else ROOT).as_posix()}"
        for folder in ("qkvit", *FOLDERS)
        for path in (ROOT / folder).rglob("*.py")
    }
    modules = {name for name in wheel.namelist() if name.endswith(".py")}
    assert modules == expected


def test_the_wheel_says_that_it_is_typed_and_carries_the_kernels(wheel):
    of_kernels = {f"qkvit/analysis/statistics/cpu_{name}" for name in ("kernels.c", "values.c", "vectors.h")}
    assert {"qkvit/py.typed", *of_kernels} <= set(wheel.namelist())


@pytest.mark.parametrize("folder", ["training/recipes", "training/accelerate"])
def test_the_wheel_holds_the_files_of_training(wheel, folder):
    files = {f"qkvit/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).glob("*.yaml")}
    assert files
    assert files <= set(wheel.namelist())


def test_the_wheel_carries_its_licence(wheel, metadata):
    assert metadata["License-Expression"] == "Apache-2.0"
    (name,) = (name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()


def test_every_requirement_has_a_tested_version(metadata):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in lines if "==" in line and not line.startswith("#")}
    required = {line.split(">=")[0] for line in metadata.get_all("Requires-Dist")}
    assert required <= pinned


def in_another_folder(code: str, folder: Path) -> str:
    """What `code` prints in a fresh interpreter that does not stand in the checkout."""
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_no_folder_of_the_checkout_is_importable_by_its_own_name(tmp_path):
    names = [*FOLDERS, "tests", "benchmarks"]
    code = f"import importlib.util as u; print([n for n in {names} if u.find_spec(n)])"
    assert in_another_folder(code, tmp_path) == "[]"


def test_imports_bring_no_package_that_is_not_needed_yet(tmp_path):
    """Matplotlib, scikit-learn, datasets, typer and their like wait until they are used."""
    names = [f"qkvit.{folder}" for folder in FOLDERS if (ROOT / folder / "__init__.py").is_file()]
    names += ["qkvit.analysis.pictures"]
    # A bare `import transformers` loads next to nothing; what a model needs is the fair comparison.
    code = f"""
import importlib, json, sys
import torch, transformers
from transformers import AutoBackbone, AutoImageProcessor, AutoModel, ViTModel
def packages():
    return sorted({{name.split(".")[0] for name in sys.modules}})
before = packages()
import qkvit
after = packages()
imported = [importlib.import_module(name).__name__ for name in {names}]
print(json.dumps([before, after, imported, "matplotlib" in sys.modules]))
"""
    before, after, imported, matplotlib = json.loads(in_another_folder(code, tmp_path))
    assert set(after) - set(before) - sys.stdlib_module_names == {"qkvit"}
    assert imported == names
    assert not matplotlib


def test_what_transformers_vit_passes_was_recorded_with_the_tested_versions():
    """Otherwise `.ci/run` would run it each time: then record it anew, by tests/common_suite/run.py --record."""
    record = json.loads((ROOT / "tests" / "common_suite" / "vit_outcomes.json").read_text())
    pins = (ROOT / "constraints.txt").read_text().splitlines()
    for name in ("torch", "transformers"):
        version = record["versions"][name].partition("+")[0]
        assert any(pin.partition(";")[0] == f"{name}=={version}" for pin in pins), name
    assert {name for name, row in record["outcomes"].items() if row["failed"]} == set()
    assert sum(len(row["passed"]) for row in record["outcomes"].values()) > 300
