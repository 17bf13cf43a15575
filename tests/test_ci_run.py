"""`.ci/run` passes when all of its steps do and fails when one does not; what it wrote aside is gone either way."""

import contextlib
import os
import pathlib
import shutil
import subprocess
import time

import pytest

HERE = pathlib.Path(__file__).resolve().parents[1]

# In the place of .venv/bin/python and .venv/bin/pytest: fails for the command that FAILING names, and installs nothing.
STAND_IN = """#!/usr/bin/env bash
case "$*" in *"$FAILING"*) exit 3 ;; esac
while [[ $# -gt 0 ]]; do [[ $1 != --target ]] || mkdir -p "$2"; shift; done
"""
TARGETS = "lint wheel types test:\n\t@case $@ in $$FAILING) exit 3 ;; esac\n"
# The tests fail while types are being checked, which takes long.
LONG_TYPES = """
lint wheel:
types:
\t@echo $$$$ >pid && exec sleep 300
test:
\t@until [ -s pid ]; do sleep 0.1; done; exit 3
"""


@pytest.fixture
def run(tmp_path):
    """`run(Makefile, failing)`: what came of `.ci/run`, whose steps all pass at once but for the one that is named."""

    def run(makefile: str, failing: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / ".ci").mkdir()
        shutil.copy(HERE / ".ci" / "run", tmp_path / ".ci")
        (tmp_path / "Makefile").write_text(makefile)
        (tmp_path / ".venv" / "bin").mkdir(parents=True)
        for name in ("python", "pytest"):
            (tmp_path / ".venv" / "bin" / name).write_text(STAND_IN)
            (tmp_path / ".venv" / "bin" / name).chmod(0o755)
        (tmp_path / "aside").mkdir()
        environment = {**os.environ, "FAILING": failing, "TMPDIR": str(tmp_path / "aside")}
        return subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("failing", ["none", "test", "wheel", "common_suite"])
def test_the_exit_code_says_whether_all_steps_passed(run, tmp_path, failing):
    ran = run(TARGETS, failing)
    assert (ran.returncode == 0) == (failing == "none"), ran.stdout + ran.stderr
    assert ("all passed" in ran.stdout) == (failing == "none")
    assert not list((tmp_path / "aside").iterdir())


def test_tests_that_fail_end_what_runs_beside_them(run, tmp_path):
    assert run(LONG_TYPES, "none").returncode != 0
    for _ in range(100):
        stat = pathlib.Path("/proc", (tmp_path / "pid").read_text().strip(), "stat")
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            if stat.read_text().split()[2] != "Z":
                time.sleep(0.1)
                continue
        return
    raise AssertionError("it still runs")
