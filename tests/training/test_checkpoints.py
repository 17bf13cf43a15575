"""A checkpoint is never lost while another one takes its place."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from qkvit.training import train
from qkvit.training.checkpoints import ASIDE, checkpoints, publish, seal, sealed_facts, step_of
from qkvit.training.errors import TrainingTerminatedError
from qkvit.training.run_folder import find_checkpoint
from qkvit.training.trainer import RecipeTrainer


class KilledError(Exception):
    """Stands for the end of the process."""


@pytest.fixture
def killed_at(monkeypatch):
    """`killed_at(n)`: from the n-th renaming or removal on, the file system is out of reach."""

    def arm(count):
        calls = iter(range(count))

        def dying(original):
            def call(*arguments, **options):
                if next(calls, None) is None:
                    raise KilledError
                return original(*arguments, **options)

            return call

        monkeypatch.setattr(Path, "rename", dying(Path.rename))
        monkeypatch.setattr(shutil, "rmtree", dying(shutil.rmtree))

    return arm


def checkpoint(folder, text):
    folder.mkdir(parents=True)
    (folder / "model.bin").write_text(text)
    seal(folder, {"step": 4})
    return folder


@pytest.mark.parametrize("moment", range(4))
def test_one_of_the_same_step_is_replaced_without_a_moment_when_none_is_left(tmp_path, monkeypatch, killed_at, moment):
    place = checkpoint(tmp_path / "checkpoint-4", "old")
    aside = checkpoint(tmp_path / ASIDE / "checkpoint-4", "new")
    killed_at(moment)
    with contextlib.suppress(KilledError) if moment < 3 else contextlib.nullcontext():
        publish(aside, place)
    monkeypatch.undo()
    assert find_checkpoint(tmp_path) == place
    assert (place / "model.bin").read_text() == "new"
    assert sealed_facts(place) is not None
    assert not (tmp_path / ASIDE).exists()


def test_what_was_not_sealed_is_removed(tmp_path):
    checkpoint(tmp_path / "checkpoint-4", "old")
    (tmp_path / ASIDE / "checkpoint-4").mkdir(parents=True)
    (tmp_path / ASIDE / "checkpoint-4" / "model.bin").write_text("half")
    assert (find_checkpoint(tmp_path) / "model.bin").read_text() == "old"
    assert not (tmp_path / ASIDE).exists()


@pytest.fixture
def stopped_after(tiny, tmp_path, monkeypatch):
    """`stopped_after(step)`: the steps that were saved by a run of epochs of 12 steps, and how it was evaluated."""

    def run(step):
        saved, measured = [], []
        save, seed, measure = RecipeTrainer._save_checkpoint, RecipeTrainer._seed_step, RecipeTrainer.evaluate

        def noted(self, *arguments):
            saved.append(self.state.global_step)
            return save(self, *arguments)

        def asked(self):
            if self.state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            return seed(self)

        def evaluated(self, *arguments, **settings):
            measured.append(self.state.global_step)
            return measure(self, *arguments, **settings)

        arguments = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "epoch", "eval_strategy": "epoch"}
        with monkeypatch.context() as patch:
            patch.setattr(RecipeTrainer, "_save_checkpoint", noted)
            patch.setattr(RecipeTrainer, "_seed_step", asked)
            patch.setattr(RecipeTrainer, "evaluate", evaluated)
            with pytest.raises(TrainingTerminatedError):
                train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), **arguments}}))
        return saved, measured

    return run


def test_a_step_that_is_saved_twice_has_one_checkpoint(stopped_after, tmp_path):
    """Evaluated and saved at the end of an epoch whose last step a request saves."""
    saved, measured = stopped_after(12)
    assert (saved, measured) == ([12, 12], [12])
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [12]
    assert not (tmp_path / "run" / ASIDE).exists()


def test_a_request_within_an_epoch_brings_no_evaluation(stopped_after, tmp_path):
    """The run that is not stopped has none there; early stopping and the best checkpoints follow from evaluations."""
    saved, measured = stopped_after(9)
    assert (saved, measured) == ([9], [])
    state = json.loads((tmp_path / "run" / "checkpoint-9" / "trainer_state.json").read_text())
    assert not [entry for entry in state["log_history"] if "eval_loss" in entry]
