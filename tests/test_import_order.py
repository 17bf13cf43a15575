"""Who may import whom: configuration <- modeling, data <- analysis, training, sharing <- study <- qkvit."""

import ast
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Folder -> the folders that its code may import besides itself.
MAY_IMPORT = {
    "configuration": set(),
    "modeling": {"configuration"},
    "data": {"configuration"},
    "analysis": {"configuration", "modeling", "data"},
    "training": {"configuration", "modeling", "data"},
    "sharing": {"configuration", "modeling", "data"},
    "study": {"configuration", "modeling", "data", "analysis", "training", "sharing"},
    "qkvit": {"configuration", "modeling", "data", "analysis", "training", "sharing", "study"},
}


class Import(NamedTuple):
    line: int
    module: str  # absolute, e.g. "qkvit.modeling.attention"


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import in a module of `package` ("qkvit.modeling"): at its top, in functions and for types alone.

    `from a import b` counts as an import of a.b, because b may be a module.
    """
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name)
            case ast.ImportFrom():
                parents = package.split(".")
                base = parents[: len(parents) - node.level + 1] if node.level else []
                stem = ".".join([*base, *([node.module] if node.module else [])])
                for alias in node.names:
                    yield Import(node.lineno, f"{stem}.{alias.name}")
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__") | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(node.lineno, package + name if name.startswith(".") else name)


def folder_of(module: str) -> str | None:
    """The folder that holds `module`; None if it is not ours."""
    first, _, rest = module.partition(".")
    if first != "qkvit":
        return None
    second = rest.split(".")[0]
    return second if second in MAY_IMPORT else "qkvit"


def violations(root: Path) -> list[str]:
    """One line for each import under `root` that goes against the order."""
    found = []
    for folder, allowed in MAY_IMPORT.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).parent.parts
            package = ".".join(parts if folder == "qkvit" else ("qkvit", *parts))
            for line, module in imports_of(path.read_text(encoding="utf-8"), package):
                where = f"{path.relative_to(root)}:{line}"
                target = folder_of(module)
                if module.split(".")[0] in MAY_IMPORT.keys() - {"qkvit"}:
                    found.append(f"{where}: {module} exists in a checkout only; import it relatively")
                elif target is not None and target != folder and target not in allowed:
                    found.append(f"{where}: {folder} may not import {target} ({module})")
    return found


def test_every_import_follows_the_order():
    assert violations(ROOT) == []


def test_every_folder_with_an_init_has_a_place_in_the_order():
    apart = {"tests", "benchmarks", "docs", "examples"}
    folders = {init.parent.name for init in ROOT.glob("[!.]*/__init__.py")} - apart
    assert folders <= MAY_IMPORT.keys()


@pytest.mark.parametrize(
    ("file", "statement", "expected"),
    [
        ("configuration/a.py", "from ..modeling.vit import Model", "configuration may not import modeling"),
        ("modeling/a.py", "from ..analysis import record", "modeling may not import analysis"),
        ("modeling/a.py", "from .. import analysis", "modeling may not import analysis"),
        ("modeling/a.py", "from qkvit import QKViTModel", "modeling may not import qkvit"),
        ("modeling/deep/a.py", "from ...training import train", "modeling may not import training"),
        ("analysis/a.py", "import qkvit.training.recipe", "analysis may not import training"),
        ("training/a.py", "from ..analysis.rollout import rollout", "training may not import analysis"),
        ("sharing/a.py", "from ..study import ablate", "sharing may not import study"),
        ("study/a.py", "from ..cli import main", "study may not import qkvit"),
        ("qkvit/a.py", "from modeling.vit import Model", "import it relatively"),
        ("analysis/a.py", 'importlib.import_module("qkvit.training")', "analysis may not import training"),
        ("analysis/a.py", "def f():\n    from ..training import train", "analysis may not import training"),
        (
            "analysis/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..training import train",
            "analysis may not import training",
        ),
    ],
)
def test_an_import_against_the_order_is_reported(tmp_path, file, statement, expected):
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(statement)
    (report,) = violations(tmp_path)
    assert expected in report
    assert report.startswith(f"{file}:{len(statement.splitlines())}: ")


def test_imports_along_the_order_are_not_reported(tmp_path):
    files = {
        "modeling/conversion/a.py": """
            import torch
            from . import sibling
            from ..attention import attend
            from ...configuration.configuration_qkvit import QKViTConfig
        """,
        "study/a.py": """
            from ..analysis import record
            from ..training import train
        """,
        "qkvit/__init__.py": """
            from .configuration import QKViTConfig
            from .study import ablate
            from .version import __version__
        """,
    }
    for name, source in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
    assert violations(tmp_path) == []
