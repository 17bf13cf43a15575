"""The kernels are compiled once, kept, and done without where that cannot be; nothing of a stranger's is loaded."""

import os
import stat
import subprocess
import sys

import pytest
import torch

from qkvit.analysis import TokenLayout, attention_statistics
from qkvit.analysis.statistics import cpu_library, fused_cpu

pytestmark = pytest.mark.skipif(cpu_library.library() is None, reason="there is no C compiler")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "qkvit" / "kernels"


def count_compilations(monkeypatch):
    commands = []
    run = subprocess.run

    def count(command, **kwargs):
        commands.append(command)
        return run(command, **kwargs)

    monkeypatch.setattr(cpu_library.subprocess, "run", count)
    return commands


def test_the_kernels_are_compiled_once(cache, monkeypatch):
    commands = count_compilations(monkeypatch)
    assert cpu_library.find_library() is not None
    assert cpu_library.find_library() is not None
    assert len(commands) == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


def test_another_source_is_another_library(cache, monkeypatch, tmp_path):
    cpu_library.find_library()
    source = tmp_path / "changed.c"
    source.write_text(cpu_library.SOURCE.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    monkeypatch.setattr(cpu_library, "SOURCE", source)
    cpu_library.find_library()
    assert len(list(cache.glob("*.so"))) == 2


def test_a_compiler_without_openmp_or_native_code_does(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "plain-cc"
    compiler.write_text(
        '#!/bin/sh\nfor it in "$@"; do case "$it" in -march*|-fopenmp*) exit 1;; esac; done\nexec cc "$@"\n'
    )
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    commands = count_compilations(monkeypatch)
    assert cpu_library.find_library() is not None
    assert len(commands) == len(cpu_library.CHOICES)


def test_without_a_compiler_there_are_no_kernels(cache, monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CC", raising=False)
    assert cpu_library.find_library() is None


def test_a_compiler_that_fails_leaves_nothing(cache, monkeypatch):
    monkeypatch.setenv("CC", "false")
    assert cpu_library.find_library() is None
    assert list(cache.iterdir()) == []


def test_compiling_can_be_turned_off(cache, monkeypatch):
    monkeypatch.setenv("QKVIT_COMPILE", "0")
    assert cpu_library.find_library() is None
    assert not cache.exists()


def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(cache):
    cpu_library.find_library()
    cache.chmod(0o777)
    assert cpu_library.find_library() is None


def test_a_file_that_is_no_library_is_done_without(cache):
    cache.mkdir(parents=True, mode=0o700)
    (cache / f"{cpu_library._fingerprint()}.so").write_bytes(b"not a library")
    assert cpu_library.find_library() is None


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert cpu_library.find_library() is None


def test_two_processes_may_compile_at_once(cache):
    code = "from qkvit.analysis.statistics.cpu_library import library; assert library() is not None"
    processes = [subprocess.Popen([sys.executable, "-c", code], env=dict(os.environ)) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("place", ["row", "whole image", "class token"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_what_is_not_a_number_is_not_hidden(place, number, monkeypatch):
    """The compiled kernels give NaN wherever torch gives it."""
    layout = TokenLayout(grid=(3, 4), has_class_token=True, num_register_tokens=2)
    torch.manual_seed(0)
    query, key, value = torch.rand(3, 1, 2, layout.num_tokens, 8).unbind()
    {"row": query[0, 0, 4], "whole image": key[0, 0, 3:], "class token": key[0, 0, 0]}[place].fill_(number)
    given = {"scaling": 1.0, "value": value, "output_projection": torch.randn(16, 16), "backend": "cpu"}
    by_kernels = dict(attention_statistics(query, key, layout, **given).items())
    monkeypatch.setattr(fused_cpu, "library", lambda: None)
    by_torch = dict(attention_statistics(query, key, layout, **given).items())
    assert by_kernels["entropy"].isnan().any()
    for name in by_torch.keys() - {"argmaximum"}:
        found, other = by_kernels[name], by_torch[name]
        assert found.isnan()[other.isnan()].all(), name
        whole = ~found.isnan()
        torch.testing.assert_close(found[whole], other[whole], rtol=1e-4, atol=1e-6, msg=name)
