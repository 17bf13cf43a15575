"""`.ci/run` passes when all of its steps do and fails when one does not; what it wrote aside is gone either way."""

import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).resolve().parents[1]

# In the place of .venv/bin/python and .venv/bin/pytest: fails for the command that FAILING names, and installs nothing.
STAND_IN = """#!/usr/bin/env bash
case "$*" in *"$FAILING"*) exit 3 ;; esac
while [[ $# -gt 0 ]]; do [[ $1 != --target ]] || mkdir -p "$2"; shift; done
"""
TARGETS = "lint wheel types test:\n\t@case $@ in $$FAILING) exit 3 ;; esac\n"


@pytest.mark.parametrize("failing", ["none", "lint", "test", "wheel", "types", "test_quantisation", "common_suite"])
def test_the_exit_code_says_whether_all_steps_passed(tmp_path, failing):
    (tmp_path / ".ci").mkdir()
    shutil.copy(HERE / ".ci" / "run", tmp_path / ".ci")
    (tmp_path / "Makefile").write_text(TARGETS)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    for name in ("python", "pytest"):
        (tmp_path / ".venv" / "bin" / name).write_text(STAND_IN)
        (tmp_path / ".venv" / "bin" / name).chmod(0o755)
    (tmp_path / "aside").mkdir()

    environment = {**os.environ, "FAILING": failing, "TMPDIR": str(tmp_path / "aside")}
    ran = subprocess.run([tmp_path / ".ci" / "run"], env=environment, capture_output=True, text=True, timeout=60)

    assert (ran.returncode == 0) == (failing == "none"), ran.stdout + ran.stderr
    assert ("all passed" in ran.stdout) == (failing == "none")
    assert not list((tmp_path / "aside").iterdir())
