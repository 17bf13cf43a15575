"""The kernels are compiled once, kept, and done without where that cannot be; nothing of a stranger's is loaded."""

import multiprocessing
import shutil
import stat
import subprocess

import pytest
import torch

from qkvit.analysis import PreparedProjection, TokenLayout, attention_statistics
from qkvit.analysis.statistics import cpu_library, fused_cpu
from qkvit.analysis.statistics.grid import grid_of
from qkvit.analysis.statistics.groups import GROUPS

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


@pytest.fixture(scope="module")
def kept():
    """The file of the kernels that this process has found or compiled, in the user's own cache."""
    return cpu_library._folder() / f"{cpu_library._fingerprint()}.so"


@pytest.fixture
def compiled(kept, cache):
    """The cache with the kernels in it."""
    cache.mkdir(parents=True, mode=0o700)
    shutil.copy(kept, cache)
    return cache


def test_the_kernels_are_compiled_once(cache, monkeypatch):
    commands = count_compilations(monkeypatch)
    assert cpu_library.find_library() is not None
    assert cpu_library.find_library() is not None
    assert len(commands) == 1
    assert [path.suffix for path in cache.iterdir()] == [".so"]
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700


@pytest.mark.parametrize("changed", [cpu_library.SOURCES[-1], cpu_library.HEADER], ids=lambda path: path.name)
def test_another_source_is_another_library(compiled, monkeypatch, tmp_path, changed):
    commands = count_compilations(monkeypatch)
    assert cpu_library.find_library() is not None
    assert not commands
    moved = {path: tmp_path / path.name for path in (*cpu_library.SOURCES, cpu_library.HEADER)}
    for path, copy in moved.items():
        copy.write_text(path.read_text(encoding="utf-8") + "\n" * (path == changed), encoding="utf-8")
    monkeypatch.setattr(cpu_library, "SOURCES", [moved[path] for path in cpu_library.SOURCES])
    monkeypatch.setattr(cpu_library, "HEADER", moved[cpu_library.HEADER])
    cpu_library.find_library()
    assert len(list(compiled.glob("*.so"))) == 2


def test_every_source_is_in_the_name_of_the_library(monkeypatch, tmp_path):
    names = {cpu_library._fingerprint()}
    for number, path in enumerate((*cpu_library.SOURCES, cpu_library.HEADER)):
        changed = tmp_path / path.name
        changed.write_text(path.read_text(encoding="utf-8") + "\n", encoding="utf-8")
        with monkeypatch.context() as patch:
            patch.setattr(cpu_library, "SOURCES", [changed if it == path else it for it in cpu_library.SOURCES])
            patch.setattr(cpu_library, "HEADER", changed if path == cpu_library.HEADER else cpu_library.HEADER)
            names.add(cpu_library._fingerprint())
        assert len(names) == number + 2, path.name


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


def test_nothing_is_loaded_from_a_folder_that_others_can_write_to(compiled):
    assert cpu_library.find_library() is not None
    compiled.chmod(0o777)
    assert cpu_library.find_library() is None


def test_a_file_that_is_no_library_is_made_again(cache):
    cache.mkdir(parents=True, mode=0o700)
    broken = cache / f"{cpu_library._fingerprint()}.so"
    broken.write_bytes(b"not a library")
    assert cpu_library.find_library() is not None
    assert broken.read_bytes() != b"not a library"


def test_a_compiler_that_makes_rubbish_leaves_nothing(cache, tmp_path, monkeypatch):
    compiler = tmp_path / "rubbish-cc"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho rubbish > "$2"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    assert cpu_library.find_library() is None
    assert list(cache.iterdir()) == []


def test_an_unknown_processor_gets_code_that_all_of_its_kind_can_run(cache, monkeypatch):
    monkeypatch.setattr(cpu_library, "_features", lambda: "")
    commands = count_compilations(monkeypatch)
    assert cpu_library.find_library() is not None
    assert not any("-march=native" in command for command in commands)


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    assert cpu_library.find_library() is None


def test_two_processes_may_compile_at_once(cache):
    def find() -> None:
        assert cpu_library.find_library() is not None

    processes = [multiprocessing.get_context("fork").Process(target=find) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert len(list(cache.iterdir())) == 1


@pytest.mark.parametrize("prefix", [0, 3])
@pytest.mark.parametrize("place", ["row", "whole image", "one key"])
@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_a_number_is_not_hidden(prefix, place, number, monkeypatch):
    """The compiled kernels give NaN wherever the reference gives it for a row, and torch's numbers elsewhere."""
    layout = TokenLayout(grid=(3, 4), has_class_token=prefix > 0, num_register_tokens=max(0, prefix - 1))
    torch.manual_seed(0)
    query, key, value = torch.rand(3, 1, 2, layout.num_tokens, 8).unbind()
    {"row": query[0, 0, 4], "whole image": key[0, 0], "one key": key[0, 0, 5]}[place].fill_(number)
    given = {"scaling": 1.0, "value": value, "output_projection": torch.randn(16, 16)}
    by_kernels = dict(attention_statistics(query, key, layout, backend="cpu", **given).items())
    exact = dict(attention_statistics(query, key, layout, backend="reference", **given).items())
    monkeypatch.setattr(fused_cpu, "library", lambda: None)
    by_torch = dict(attention_statistics(query, key, layout, backend="cpu", **given).items())
    for name in exact.keys() - {"argmaximum"}:
        found, other = by_kernels[name], by_torch[name]
        assert found.isnan()[exact[name].isnan()].all(), name
        whole = ~(found.isnan() | other.isnan())
        torch.testing.assert_close(found[whole], other[whole], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_data_type_of_the_user_changes_nothing(dtype):
    layout = TokenLayout(grid=(8, 8), has_class_token=True)
    query, key, value = torch.randn(3, 1, 2, layout.num_tokens, 8).unbind()
    given = {"scaling": 1.0, "value": value, "output_projection": torch.randn(16, 16)}
    before = dict(attention_statistics(query, key, layout, **given).items())
    torch.set_default_dtype(dtype)
    try:
        after = dict(attention_statistics(query, key, layout, **given).items())
    finally:
        torch.set_default_dtype(torch.float32)
    for name, numbers in before.items():
        torch.testing.assert_close(after[name], numbers, equal_nan=True, rtol=1e-4, atol=1e-6, msg=name)


@pytest.fixture(params=cpu_library.CHOICES, ids=" ".join, scope="module")
def each_choice(request, tmp_path_factory):
    """The kernels of each choice of flags, in turn: vectors of all widths that the machine has."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setattr(cpu_library, "CHOICES", (request.param,))
        found = cpu_library.find_library()
        assert found is not None
        patch.setattr(fused_cpu, "library", lambda: found)
        yield


def test_long_rows_keep_their_digits_whatever_the_compiler_makes_of_them(each_choice):
    """65,536 patches, of which one is ahead: equal numbers round to the same side each time that one is added."""
    layout = TokenLayout(grid=(256, 256))
    scores = torch.full((1, 1, layout.num_patches), 0.3)
    scores[..., 1234] = 7.7
    exact = scores.double().softmax(dim=-1)[0, 0]
    query = torch.empty(1, 1, layout.num_patches, 1)
    results = fused_cpu.room_for(frozenset(["maximum", "place", "distance"]), layout, query)
    grid = grid_of(layout, query.device, torch.float32)
    first = slice(0, 1)
    fused_cpu.read_rows(scores, scores.new_empty(1, 1, 0), grid, first, first, first, 1, None, results, True)
    places = grid.lines_and_columns.double()
    centre = places @ exact
    spread = (exact * (places - centre[:, None]).square().sum(dim=0)).sum().sqrt()
    assert results["maximum"][0, 0, 0].item() == pytest.approx(exact.max().item(), rel=3e-5)
    assert results["spread"][0, 0, 0].item() == pytest.approx(spread.item(), rel=3e-5)
    assert results["distance"][0, 0, 0].item() == pytest.approx((exact @ places.norm(dim=0)).item(), rel=3e-5)


def test_whatever_the_compiler_makes_of_them_the_numbers_are_those_of_the_definitions(each_choice):
    """35 patches are two whole vectors and three numbers more; heads of width 32 are multiplied by the kernel."""
    torch.manual_seed(0)
    layout = TokenLayout(grid=(5, 7), has_class_token=True, num_register_tokens=2)
    query, key, value = (torch.randn(2, 7, layout.num_tokens, 32) for _ in range(3))
    linear = torch.nn.Linear(224, 40)
    given = {"scaling": 0.3, "value": value, "output_projection": PreparedProjection.of(linear, 7)}
    exact = dict(attention_statistics(query, key, layout, **given, backend="reference").items())
    for name, numbers in attention_statistics(query, key, layout, **given).items():
        torch.testing.assert_close(
            numbers.double(), exact[name].double(), rtol=1e-4, atol=1e-6, equal_nan=True, check_dtype=False, msg=name
        )


def test_of_equal_weights_the_first_is_the_largest_whatever_the_vectors_of_the_processor(each_choice):
    layout = TokenLayout(grid=(5, 7))
    key = torch.zeros(1, 1, 35, 1)
    key[..., [19, 21, 34], 0] = 1.0
    statistics = attention_statistics(torch.ones_like(key), key, layout, scaling=1.0, statistics="maximum")
    assert (statistics.argmaximum == 19).all()


@pytest.fixture
def threads_of_torch():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("images", [1, 3])
@pytest.mark.parametrize("statistics", [[*GROUPS, "mean_map"], "mean_map", "similarity", "received"])
def test_threads_share_the_queries_and_lose_none(threads, images, statistics, threads_of_torch):
    layout = TokenLayout(grid=(13, 13), has_class_token=True, num_register_tokens=2)
    query, key, value = torch.randn(3, images, 5, layout.num_tokens, 8).unbind()
    given = {"scaling": 0.5, "statistics": statistics}
    if "values" in statistics:
        given |= {"value": value, "output_projection": torch.randn(40, 40)}
    exact = attention_statistics(query.double(), key.double(), layout, backend="reference", **given | widened(given))
    threads_of_torch(threads)
    found = dict(attention_statistics(query, key, layout, **given).items())
    for name, numbers in exact.items():
        if name != "argmaximum":
            torch.testing.assert_close(
                found[name].double(), numbers.double(), equal_nan=True, rtol=1e-4, atol=1e-6, msg=name
            )


def widened(given):
    return {name: tensor.double() for name, tensor in given.items() if isinstance(tensor, torch.Tensor)}
