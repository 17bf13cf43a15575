"""A checkpoint is never lost while another one takes its place."""

import contextlib
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qkvit.training import evaluation, report, train
from qkvit.training.checkpoints import ASIDE, checkpoints, newest_whole, prune, publish, seal, sealed_facts, step_of
from qkvit.training.errors import TrainingStoppedError, TrainingTerminatedError
from qkvit.training.images.bad_images import BadImageList
from qkvit.training.optimisation.weight_average import WeightAverage
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


def test_what_is_passed_over_is_not_kept_in_the_place_of_what_comes_after(tmp_path, capsys):
    checkpoint(tmp_path / "checkpoint-4", "old")
    checkpoint(tmp_path / "checkpoint-8", "whole")
    (tmp_path / "checkpoint-8" / "model.bin").write_text("damaged")
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    assert "checkpoint-8 is not whole and is passed over" in capsys.readouterr().err
    (tmp_path / "checkpoint-8" / "model.bin").write_text("whole")  # as where a disk was not there for a moment
    assert find_checkpoint(tmp_path) == tmp_path / "checkpoint-8"
    checkpoint(tmp_path / "checkpoint-6", "new")
    prune(tmp_path, 1, written=tmp_path / "checkpoint-6")
    assert checkpoints(tmp_path) == [tmp_path / "checkpoint-6"]


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


def test_a_request_in_the_last_step_of_an_epoch_is_saved_once(stopped_after, tmp_path):
    """Trainer would evaluate at the end of the epoch, and save again."""
    saved, _ = stopped_after(12)
    assert saved == [12]
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [12]
    assert not (tmp_path / "run" / ASIDE).exists()


@pytest.fixture
def asked_in_step_3(tiny, tmp_path, monkeypatch):
    """`asked_in_step_3(losses, ...)`: a run with these recipe parts gets SIGTERM in step 3 and leaves.

    Its evaluations measure these losses; what is given are the checkpoints that there were at each of them.
    """
    seed, there = RecipeTrainer._seed_step, []

    def asked(self):
        if self.state.global_step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return seed(self)

    def run(losses, *parts):
        left = iter(losses)

        def measured(self, images, prefix):
            there.append([step_of(each) for each in checkpoints(tmp_path / "run")])
            return {f"{prefix}_loss": next(left), f"{prefix}_accuracy": 0.5}

        with monkeypatch.context() as patch:
            patch.setattr(RecipeTrainer, "_seed_step", asked)
            patch.setattr(RecipeTrainer, "_measure", measured)
            with pytest.raises(TrainingTerminatedError, match="after step 3, which is saved"):
                train(tiny({"arguments": {"output_dir": str(tmp_path / "run")}}, *parts))
        return there

    return run


def evaluations(log):
    return [(entry["step"], entry["eval_loss"]) for entry in log if "eval_loss" in entry]


def losses_of(checkpoint):
    log = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return [loss for _, loss in evaluations(log)]


def test_a_request_is_saved_where_the_best_alone_are(asked_in_step_3, tmp_path):
    """Trainer takes back what is to be saved where the evaluation of the step is not the best so far."""
    best = {"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "loss"}
    asked_in_step_3([1.0, 2.0, 3.0], {"arguments": best})
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [3, 1]
    newest = newest_whole(tmp_path / "run")[0]
    assert newest.name == "checkpoint-3"
    assert losses_of(newest) == [1.0, 2.0, 3.0], "that of its step too"


def test_a_request_at_the_end_of_an_epoch_keeps_its_evaluation_that_is_not_the_best(tiny, tmp_path, monkeypatch):
    seed, losses, listed = RecipeTrainer._seed_step, iter([1.0, 2.0]), []

    def asked(self):
        if self.state.global_step == 23:
            os.kill(os.getpid(), signal.SIGTERM)
        return seed(self)

    monkeypatch.setattr(RecipeTrainer, "_seed_step", asked)
    monkeypatch.setattr(RecipeTrainer, "_measure", lambda self, images, prefix: {f"{prefix}_loss": next(losses)})
    monkeypatch.setattr(BadImageList, "on_save", lambda self, args, state, *_, **__: listed.append(state.global_step))
    best = {"save_strategy": "best", "eval_strategy": "epoch", "metric_for_best_model": "loss", "num_train_epochs": 3}
    with pytest.raises(TrainingTerminatedError):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": -1, **best}}))
    assert losses_of(newest_whole(tmp_path / "run")[0]) == [1.0, 2.0]
    assert listed == [12, 24], "with each checkpoint, which images could not be used; none before the evaluation"


@pytest.fixture
def asked_while_measured(monkeypatch):
    """Every evaluation has SIGTERM come in it."""
    measure = RecipeTrainer._measure

    def asked(self, images, prefix):
        os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, images, prefix)

    monkeypatch.setattr(RecipeTrainer, "_measure", asked)


@pytest.mark.usefixtures("asked_while_measured")
def test_a_request_before_the_first_step_is_saved_after_it(tiny, tmp_path):
    """Not in the middle of it, where its gradients are accumulated."""
    start = {"eval_on_start": True, "eval_strategy": "epoch", "gradient_accumulation_steps": 2}
    with pytest.raises(TrainingTerminatedError, match="after step 1, which is saved"):
        train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), **start}}))
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [1]


EVERY_THIRD = {"arguments": {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no"}}


@pytest.fixture
def evaluated_at(monkeypatch):
    """The steps after which an evaluation came to its end."""
    steps, measure = [], RecipeTrainer._measure

    def noted(self, images, prefix):
        measured = measure(self, images, prefix)
        steps.append(self.state.global_step)
        return measured

    monkeypatch.setattr(RecipeTrainer, "_measure", noted)
    return steps


@pytest.mark.parametrize("workers", [0, 1])
def test_a_request_breaks_an_evaluation_off_and_the_run_that_goes_on_begins_with_it(
    tiny, tmp_path, monkeypatch, evaluated_at, workers
):
    """Who asked may kill the run before its end."""
    taken, usable = [], evaluation.usable

    def asked(batch, images):
        taken.append(len(batch))
        if len(taken) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return usable(batch, images)

    def recipe(name):
        loading = {"dataloader_num_workers": workers, "per_device_eval_batch_size": 1}
        return tiny(EVERY_THIRD, {"arguments": {"output_dir": str(tmp_path / name), **loading}})

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "usable", asked)
        with pytest.raises(TrainingTerminatedError, match="after step 3, which is saved"):
            train(recipe("stopped"))
    assert (taken, evaluated_at) == ([1, 1], [])
    assert losses_of(tmp_path / "stopped" / "checkpoint-3") == []
    curves: list[list[tuple[int, float]]] = []
    monkeypatch.setattr(report, "draw_curves", lambda path, log: curves.append(evaluations(log)))
    train(recipe("stopped"), resume=True)
    assert evaluated_at[:3] == [3, 6, 9]
    train(recipe("whole"))
    assert curves[0] == curves[1]


def test_what_one_process_breaks_off_no_process_finishes(tiny, tmp_path, monkeypatch, run_in_processes):
    """The second process is asked, and the first one with it: it has no sum of the second's images."""
    usable = evaluation.usable

    def asked(batch, images):
        if os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGTERM)
        return usable(batch, images)

    monkeypatch.setattr(evaluation, "usable", asked)
    recipe = tiny(EVERY_THIRD, {"arguments": {"output_dir": str(tmp_path / "run")}})
    recipe["arguments"] |= {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 1}

    def stopped():
        with pytest.raises(TrainingTerminatedError, match="after step 3, which is saved"):
            train(recipe)

    assert run_in_processes(2, stopped) == [0, 0]
    assert losses_of(newest_whole(tmp_path / "run")[0]) == []


def test_a_request_in_a_step_leaves_out_its_evaluation(stopped_after, tiny, tmp_path, evaluated_at):
    stopped_after(12)
    assert evaluated_at == []
    epochs = {"max_steps": -1, "num_train_epochs": 3, "save_strategy": "epoch", "eval_strategy": "epoch"}
    train(tiny({"arguments": {"output_dir": str(tmp_path / "run"), **epochs}}), resume=True)
    assert evaluated_at[:3] == [12, 24, 36]


def test_a_request_is_not_saved_before_an_evaluation_that_decides(asked_in_step_3, tmp_path):
    """The run that goes on would not have it: it says when to stop early."""
    assert asked_in_step_3([1.0], EVERY_THIRD, {"optimisation": {"early_stopping": 5}}) == [[]]
    assert losses_of(tmp_path / "run" / "checkpoint-3") == [1.0]


@pytest.mark.usefixtures("asked_while_measured")
def test_a_request_during_an_evaluation_stops_without_another_step(tiny, tmp_path):
    with pytest.raises(TrainingTerminatedError, match="after step 3, which is saved"):
        train(tiny(EVERY_THIRD, {"arguments": {"output_dir": str(tmp_path / "run")}}))
    assert [step_of(each) for each in checkpoints(tmp_path / "run")] == [3]


@pytest.mark.parametrize("settings", [["max_grad_norm=0"], ["max_grad_norm=1"], ["gradient_accumulation_steps=2"]])
def test_a_gradient_that_is_not_finite_stops_the_run_before_it_spoils_a_weight(tiny, tmp_path, monkeypatch, settings):
    """Of the step's own images; the checkpoint before it is gone on from."""
    step_of_training = RecipeTrainer.training_step

    def spoils(self, model, *arguments, **keywords):
        loss = step_of_training(self, model, *arguments, **keywords)
        if self.state.global_step == 4:
            self.model.qkvit.layers[0].mlp.up_proj.weight.grad[0, 0] = float("nan")
        return loss

    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run")}})
    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "training_step", spoils)
        with pytest.raises(TrainingStoppedError) as caught:
            train(recipe, settings)
    message = str(caught.value)
    assert "norm of the gradients is nan in step 5, first in that of qkvit.layers.0.mlp.up_proj.weight" in message
    images = 16 if "gradient_accumulation_steps=2" in settings else 8
    assert len(message[message.index("[") + 1 : message.index("]")].split(", ")) == images
    found, broken = newest_whole(tmp_path / "run")
    assert (step_of(found), broken) == (4, [])
    assert train(recipe, settings, resume=True)["steps"] == 9


@pytest.mark.parametrize("step", [2, 9])
def test_weights_that_are_not_finite_are_not_saved(tiny, tmp_path, monkeypatch, step):
    """After the last step no loss would show them."""
    update = WeightAverage.on_step_end

    def spoils(self, args, state, control, **keywords):
        if state.global_step == step:
            with torch.no_grad():
                self.model.classifier.weight[0, 0] = float("inf")
        return update(self, args, state, control, **keywords)

    monkeypatch.setattr(WeightAverage, "on_step_end", spoils)
    recipe = tiny({"optimisation": {"average_decay": 0.9}, "arguments": {"output_dir": str(tmp_path / "run")}})
    with pytest.raises(TrainingStoppedError, match=f"classifier.weight is not finite any more after step {step}"):
        train(recipe)
    assert max((step_of(each) for each in checkpoints(tmp_path / "run")), default=0) < step
    assert not (tmp_path / "run" / "model.safetensors").exists()
    assert not (tmp_path / "run" / "metrics.json").exists()


def test_the_average_is_that_of_the_best_step_too(tiny, tmp_path, monkeypatch):
    losses, measure = {2: 3.0, 4: 1.0, 6: 2.0, 8: 4.0}, RecipeTrainer._measure

    def measured(self, images, prefix):
        found = measure(self, images, prefix)
        return found | {f"{prefix}_loss": losses[self.state.global_step]}

    monkeypatch.setattr(RecipeTrainer, "_measure", measured)
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 8}
    recipe = {"optimisation": {"average_decay": 0.9}, "arguments": {"output_dir": str(tmp_path / "run"), **best}}
    train(tiny(recipe))
    saved = load_file(tmp_path / "run" / "averaged" / "model.safetensors")
    of_step = {step: load_file(tmp_path / "run" / f"checkpoint-{step}" / "averaged.safetensors") for step in (4, 8)}
    assert all(saved[name].equal(of_step[4][name]) for name in saved)
    assert not all(saved[name].equal(of_step[8][name]) for name in saved)


def test_a_request_within_an_epoch_brings_no_evaluation(stopped_after, tmp_path):
    """The run that is not stopped has none there; early stopping and the best checkpoints follow from evaluations."""
    saved, measured = stopped_after(9)
    assert (saved, measured) == ([9], [])
    state = json.loads((tmp_path / "run" / "checkpoint-9" / "trainer_state.json").read_text())
    assert not [entry for entry in state["log_history"] if "eval_loss" in entry]
