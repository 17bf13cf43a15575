"""Scripts in benchmarks/ and examples/ start: they are run by hand alone, so nobody else notices that one broke."""

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = [path for folder in ("benchmarks", "examples") for path in sorted((ROOT / folder).glob("*.py"))]
MODULES = {"report.py", "turns.py", "peak_memory.py", "transfer.py"}  # imported by the others


@pytest.fixture
def neighbours(monkeypatch):
    """What a script imports from its own folder is forgotten afterwards."""
    before = set(sys.modules)
    yield monkeypatch.syspath_prepend
    folders = {str(path.parent) for path in SCRIPTS}
    for name in set(sys.modules) - before:
        if str(Path(getattr(sys.modules[name], "__file__", None) or "/").parent) in folders:
            del sys.modules[name]


@pytest.mark.parametrize("script", [path for path in SCRIPTS if path.name not in MODULES], ids=lambda path: path.stem)
def test_a_script_says_how_it_is_used(script, neighbours, monkeypatch, capsys):
    neighbours(str(script.parent))
    monkeypatch.setattr(sys, "argv", [script.name, "--help"])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert left.value.code == 0
    assert f"usage: {script.name}" in capsys.readouterr().out


class TestTurns:
    @pytest.fixture
    def turns(self, neighbours):
        neighbours(str(ROOT / "benchmarks"))
        return runpy.run_path(str(ROOT / "benchmarks" / "turns.py"))

    def test_each_round_has_every_step_once_and_an_order_of_its_own(self, turns):
        called: list[str] = []
        steps = {name: (lambda name=name: called.append(name)) for name in "abcd"}
        times = turns["take_turns"](steps, at_least=50, warm_up=2)
        assert {len(each) for each in times.values()} == {50}
        assert called[:8] == list("aabbccdd")  # the warm-up
        rounds = ["".join(called[at : at + 4]) for at in range(8, len(called), 4)]
        assert {"".join(sorted(one)) for one in rounds} == {"abcd"}
        assert len(set(rounds)) > 15
        before_a = {called[at - 1] for at in range(8, len(called)) if called[at] == "a"}
        assert before_a >= set("bcd")  # "a" follows each of the others

    def test_a_ratio_is_of_times_of_the_same_round(self, turns):
        assert turns["ratios"]([2.0, 20.0, 200.0], [1.0, 10.0, 100.0]) == [2.0, 2.0, 2.0]


def test_a_report_names_the_machine_the_command_and_the_versions(neighbours, monkeypatch, tmp_path):
    neighbours(str(ROOT / "benchmarks"))
    monkeypatch.setattr(sys, "argv", ["benchmarks/some.py", "--rounds", "3"])
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    found = report["heading"]("cpu", "PIL")
    assert found["command"] == "python benchmarks/some.py --rounds 3"
    assert {"python", "torch", "qkvit", "transformers", "PIL"} == found["versions"].keys()
    report["write"](tmp_path / "new" / "some.json", found)
    assert '"load_average"' in (tmp_path / "new" / "some.json").read_text()
