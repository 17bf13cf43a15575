"""A full disk is an `OSError`, also where safetensors says it in a class of its own."""

import errno
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError

from qkvit.configuration.disk_errors import as_os_errors, belongs_to, on_one_disk


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EACCES])
def test_what_the_disk_refused_is_an_os_error_with_its_number_and_place(tmp_path, number):
    said = SafetensorError(f"Error while serializing: I/O error: refused (os error {number})")
    with pytest.raises(OSError) as caught, as_os_errors(tmp_path / "a.safetensors"):
        raise said
    assert (caught.value.errno, caught.value.filename) == (number, str(tmp_path / "a.safetensors"))
    assert caught.value.__cause__ is said


@pytest.mark.parametrize(("free", "expected"), [(2**20 - 1, OSError), (2**20, SafetensorError)])
def test_a_write_that_failed_without_a_word_where_nothing_is_free_is_a_full_disk(tmp_path, monkeypatch, free, expected):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
    with pytest.raises(expected) as caught, as_os_errors(tmp_path / "not" / "yet" / "a.safetensors"):
        raise SafetensorError("Error while serializing")
    assert getattr(caught.value, "errno", errno.ENOSPC) == errno.ENOSPC


def test_other_errors_pass(tmp_path):
    with pytest.raises(KeyboardInterrupt), as_os_errors(tmp_path / "a.safetensors"):
        raise KeyboardInterrupt


def test_which_disk_a_path_is_on(tmp_path):
    assert on_one_disk(tmp_path / "not" / "there", tmp_path)
    if Path("/dev/shm").is_dir() and Path("/dev/shm").stat().st_dev != tmp_path.stat().st_dev:
        assert not on_one_disk("/dev/shm/cache", tmp_path)


def test_what_belongs_to_a_folder(tmp_path):
    run = tmp_path / "runs" / "my"
    for place in (run, run / "checkpoint-2" / "model.safetensors", tmp_path / "runs"):
        assert belongs_to(run, place), place
    for place in (tmp_path / "other", tmp_path / "runs" / "my-other", tmp_path):
        assert not belongs_to(run, place), place
