"""A disk that is full or shut: one sentence, and nothing is lost."""

import errno
import os
import shutil
from pathlib import Path

import pytest
from safetensors import SafetensorError

from qkvit.training import TrainingRefusedError, checkpoint_trainer, checkpoints, train
from qkvit.training.disk_errors import DiskFullError, check_space, told


def fails_at(monkeypatch, step, error):
    seal = checkpoint_trainer.seal

    def broken(folder, facts):
        if folder.name == f"checkpoint-{step}":
            raise error
        seal(folder, facts)

    monkeypatch.setattr(checkpoint_trainer, "seal", broken)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("iostream error"),  # as torch.save says it
    ],
)
def test_a_full_disk_is_told_and_the_run_goes_on_with_the_same_bits(tiny, tmp_path, weights, monkeypatch, error):
    def recipe(folder):
        return tiny({"arguments": {"output_dir": str(tmp_path / folder), "max_steps": 5}})

    with monkeypatch.context() as patch:
        fails_at(patch, 4, error)
        if isinstance(error, RuntimeError):
            usage = shutil.disk_usage(tmp_path)
            patch.setattr("qkvit.training.run.check_space", lambda *_: None)
            patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
        with pytest.raises(DiskFullError, match="checkpoint-2 is whole; free some and go on with --resume") as caught:
            train(recipe("run"))
    assert caught.value.code == 2
    assert not (tmp_path / "run" / checkpoints.ASIDE).exists()
    train(recipe("run"), resume=True)
    train(recipe("whole"))
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_another_error_stays_what_it_is(tiny, tmp_path, monkeypatch):
    fails_at(monkeypatch, 2, RuntimeError("a defect"))
    with pytest.raises(RuntimeError, match="a defect"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}))


def test_a_folder_that_cannot_be_written_is_refused(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrainingRefusedError, match="output_dir=ANOTHER"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "file" / "run")}}))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EROFS])
@pytest.mark.parametrize("place", ["run", "run/checkpoint-2/model.safetensors", "above"])
def test_what_cannot_be_written_in_the_folder_of_a_run_is_about_the_folder(tmp_path, place, reason):
    with (
        pytest.raises(TrainingRefusedError, match=f"{place} cannot be written: .*; pass --set output_dir=ANOTHER"),
        told(tmp_path / "above" / "run" if place == "above" else tmp_path / "run"),
    ):
        raise OSError(reason, os.strerror(reason), str(tmp_path / place))


@pytest.mark.parametrize("reason", [errno.EACCES, errno.EPERM, errno.ENOTDIR])
@pytest.mark.parametrize("place", ["photos/cat", "run-2/data", ""])
def test_what_cannot_be_read_elsewhere_is_not_blamed_on_writing(tmp_path, place, reason):
    """Neither in a folder with a name that begins alike, nor in the folder above, which is there."""
    with pytest.raises(TrainingRefusedError) as caught, told(tmp_path / "run"):
        raise OSError(reason, os.strerror(reason), str(tmp_path / place))
    assert str(caught.value) == (
        f"{tmp_path / place} cannot be read or written: {os.strerror(reason).lower()}; allow it, or name another place:"
        " data.source of the recipe, or HF_HOME for caches"
    )


def test_a_disk_that_is_full_elsewhere_is_named(tmp_path):
    cache = tmp_path / "cache" / "part.arrow"
    with pytest.raises(DiskFullError, match=r"written: no space left .* HF_HOME") as caught, told(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device", str(cache))
    assert str(caught.value).startswith(f"{cache} ")
    assert "output_dir" not in str(caught.value)
    assert caught.value.code == 2


@pytest.mark.parametrize("name", ["run/checkpoint-4/weights", None, 7])
def test_a_full_disk_in_the_folder_of_a_run_or_without_a_name_is_about_the_folder(tmp_path, name):
    named = str(tmp_path / name) if isinstance(name, str) else name
    with pytest.raises(DiskFullError, match=r"is left for .*run: nothing has been saved"), told(tmp_path / "run"):
        raise OSError(errno.ENOSPC, "No space left on device", named)


def test_images_that_may_not_be_read_are_named(tiny, tmp_path, monkeypatch):
    photos = tmp_path / "photos"
    (photos / "cat").mkdir(parents=True)
    scandir = os.scandir

    def shut(path="."):
        if Path(os.fsdecode(path)).is_relative_to(photos):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", shut)
    with pytest.raises(ValueError, match=r"photos.*permission denied") as caught:
        train(tiny({"data": {"source": str(photos)}, "arguments": {"output_dir": str(tmp_path / "run")}}))
    assert "output_dir" not in str(caught.value)


def test_a_checkpoint_that_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    memory = {"weights": 2**60, "optimizer": 0, "average": 0, "activations": 0}
    with pytest.raises(TrainingRefusedError, match="a checkpoint takes about"):
        check_space(tmp_path / "run", memory)
    check_space(tmp_path / "run", memory | {"weights": 1, "activations": 2**60})
