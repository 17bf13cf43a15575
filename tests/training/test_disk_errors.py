"""A disk that is full or shut: one sentence, and nothing is lost."""

import errno
import shutil

import pytest

from qkvit.training import TrainingRefusedError, checkpoints, train, trainer
from qkvit.training.disk_errors import DiskFullError, check_space


def fails_at(monkeypatch, step, error):
    seal = trainer.seal

    def broken(folder, facts):
        if folder.name == f"checkpoint-{step}":
            raise error
        seal(folder, facts)

    monkeypatch.setattr(trainer, "seal", broken)


@pytest.mark.parametrize("says_why", [True, False])
def test_a_full_disk_is_told_and_the_run_goes_on_with_the_same_bits(tiny, tmp_path, weights, monkeypatch, says_why):
    def recipe(folder):
        return tiny({"arguments": {"output_dir": str(tmp_path / folder), "max_steps": 5}})

    with monkeypatch.context() as patch:
        if says_why:
            fails_at(patch, 4, OSError(errno.ENOSPC, "No space left on device"))
        else:  # as torch.save does
            fails_at(patch, 4, RuntimeError("iostream error"))
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


def test_a_checkpoint_that_cannot_fit_is_refused_before_anything_is_written(tmp_path):
    memory = {"weights": 2**60, "optimizer": 0, "average": 0, "activations": 0}
    with pytest.raises(TrainingRefusedError, match="a checkpoint takes about"):
        check_space(tmp_path / "run", memory)
    check_space(tmp_path / "run", memory | {"weights": 1, "activations": 2**60})
