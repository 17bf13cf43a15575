"""The examples in docstrings run.

pytest's own `--doctest-modules` would import `modeling/x.py` as `modeling.x`, where relative imports
across the folders fail; here each module is imported under the name that it has once installed.
"""

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("configuration", "modeling", "data", "analysis", "training", "study", "sharing", "qkvit")


def module_names() -> list[str]:
    names = []
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            parts = parts if folder == "qkvit" else ("qkvit", *parts)
            names.append(".".join(parts).removesuffix(".__init__"))
    return [name for name in names if not name.endswith("__main__")]


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_the_docstrings_run(name, tmp_path, monkeypatch):
    if ".triton_" in name:
        pytest.importorskip("triton", reason="Triton is not installed")
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)  # an example may write files
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    results = doctest.testmod(module, optionflags=options)
    assert results.failed == 0, f"{results.failed} of {results.attempted} examples failed; see above"
