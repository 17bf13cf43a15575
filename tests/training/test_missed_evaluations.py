"""A run that was stopped before an evaluation, or in it, begins with it, and is then as one that was not stopped."""

import os
import signal

import pytest

from qkvit.training import evaluation, report, train
from qkvit.training.checkpoints import checkpoints, step_of
from qkvit.training.errors import TrainingTerminatedError
from qkvit.training.trainer import RecipeTrainer

EVERY_THIRD = {"arguments": {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"}}


@pytest.fixture
def stopped_in_an_evaluation(monkeypatch):
    """`stopped_in_an_evaluation(recipe, resume=...)`: the first evaluation is broken off, after this step."""
    usable = evaluation.usable

    def asked(batch, images):
        os.kill(os.getpid(), signal.SIGTERM)
        return usable(batch, images)

    def run(recipe, step, **settings):
        recipe["arguments"]["per_device_eval_batch_size"] = 64
        with monkeypatch.context() as patch:
            patch.setattr(evaluation, "usable", asked)
            with pytest.raises(TrainingTerminatedError, match=f"after step {step}, which is saved"):
                train(recipe, **settings)

    return run


@pytest.fixture
def log_of(monkeypatch):
    """`log_of(recipe, resume=...)`: the log of a run that comes to its end."""

    def run(recipe, **settings):
        logs = []
        with monkeypatch.context() as patch:
            patch.setattr(report, "draw_curves", lambda path, log: logs.append(log))
            train(recipe, **settings)
        return logs[0]

    return run


def evaluations(log):
    return [entry for entry in log if "eval_loss" in entry]


def test_one_that_is_broken_off_again_is_begun_with_again(tiny, tmp_path, stopped_in_an_evaluation, log_of):
    """Another step would leave it behind; in the middle of one, gradients are accumulated."""

    def recipe(name):
        both = {"output_dir": str(tmp_path / name), "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
        return tiny(EVERY_THIRD, {"arguments": both, "optimisation": {"average_decay": 0.9}})

    for resume in (False, True, True):
        stopped_in_an_evaluation(recipe("stopped"), 3, resume=resume)
        assert [step_of(each) for each in checkpoints(tmp_path / "stopped")] == [3]
    assert evaluations(log_of(recipe("stopped"), resume=True)) == evaluations(log_of(recipe("whole")))


def test_the_best_so_far_is_the_one_that_was_missed(tiny, tmp_path, monkeypatch, stopped_in_an_evaluation):
    """Its checkpoint stays beside the newest."""
    best = {"save_strategy": "steps", "save_steps": 3, "metric_for_best_model": "loss", "max_steps": 15}
    recipe = tiny(EVERY_THIRD, {"arguments": {"output_dir": str(tmp_path / "run"), **best}})
    stopped_in_an_evaluation(recipe, 3)

    def rising(self, images, prefix):
        return {f"{prefix}_loss": float(self.state.global_step), f"{prefix}_images": 1}

    monkeypatch.setattr(RecipeTrainer, "_measure", rising)
    train(recipe, resume=True)
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [15, 3]


def test_what_goes_on_does_not_start_with_an_evaluation(tiny, tmp_path, stopped_in_an_evaluation, log_of):
    """Early stopping would count it too."""

    def recipe(name):
        return tiny(EVERY_THIRD, {"arguments": {"output_dir": str(tmp_path / name), "eval_on_start": True}})

    stopped_in_an_evaluation(recipe("stopped"), 1)  # that of the start is finished, and a step made
    assert evaluations(log_of(recipe("stopped"), resume=True)) == evaluations(log_of(recipe("whole")))


def test_the_line_of_the_epoch_before_one_is_saved(tiny, tmp_path, stopped_in_an_evaluation, log_of):
    """The step was saved before the end of its epoch, of 12 steps, was logged."""
    epochs = {"max_steps": 24, "eval_strategy": "epoch", "logging_strategy": "epoch", "save_steps": 12}
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), **epochs}})
    stopped_in_an_evaluation(recipe, 12)
    log = log_of(recipe, resume=True)
    assert [entry["step"] for entry in log if "loss" in entry] == [12, 24]
    assert [entry["step"] for entry in evaluations(log)] == [12, 24]


def test_that_of_the_last_step_is_made_up_for_too(tiny, tmp_path, monkeypatch, log_of):
    """The step is saved before it; the second ctrl-C leaves at once."""

    def recipe(name):
        return tiny({"arguments": {"output_dir": str(tmp_path / name), "eval_strategy": "epoch"}})

    def asked_twice(batch, images):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "usable", asked_twice)
        with pytest.raises(KeyboardInterrupt, match="goes on after step 9"):
            train(recipe("stopped"))
    assert evaluations(log_of(recipe("stopped"), resume=True)) == evaluations(log_of(recipe("whole"))) != []
