"""Early stopping and the best checkpoints, also of a run that was stopped and went on."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import TrainingArguments

from qkvit.training import TrainingRefusedError, TrainingStoppedError, train
from qkvit.training.checkpoints import checkpoints, step_of
from qkvit.training.recipe import Optimisation, Recipe
from qkvit.training.run import Run
from qkvit.training.trainer import RecipeTrainer
from qkvit.training.watching.best import EarlyStopping, best_checkpoints, scores, since_best

ACCURACIES = [0.2, 0.5, 0.3, 0.5, 0.4, 0.45, 0.9, 0.9]


@pytest.fixture
def measured(monkeypatch):
    """Evaluation i, at step 2 (i + 1), has the accuracy ACCURACIES[i]."""

    def measure(self, images, prefix):
        step = max(self.state.global_step // 2, 1)
        return {f"{prefix}_accuracy": ACCURACIES[step - 1], f"{prefix}_loss": 1.0 - step / 10, f"{prefix}_images": 1}

    monkeypatch.setattr(RecipeTrainer, "_measure", measure)


def evaluated(tiny, folder, **optimisation):
    arguments = {"output_dir": str(folder), "max_steps": 16, "eval_strategy": "steps", "eval_steps": 2}
    return tiny({"optimisation": optimisation, "arguments": arguments})


def steps(folder):
    return sorted(step_of(path) for path in checkpoints(folder))


def test_a_run_stops_after_so_many_evaluations_without_a_new_best_one(tiny, tmp_path, measured):
    assert train(evaluated(tiny, tmp_path / "a", early_stopping=4))["steps"] == 12
    assert train(evaluated(tiny, tmp_path / "c", early_stopping=2, early_stopping_delta=0.35))["steps"] == 6


def test_a_run_that_was_killed_stops_where_it_would_have(tiny, tmp_path, measured, weights):
    recipe = evaluated(tiny, tmp_path / "whole", early_stopping=4)
    train(recipe)
    for newest_left in (10, 12):  # 12: it had stopped, and was killed before its end
        folder = tmp_path / f"killed-{newest_left}"
        again = evaluated(tiny, folder, early_stopping=4)
        train(again, ["save_total_limit=20"])
        (folder / "metrics.json").unlink()
        for step in steps(folder):
            if step > newest_left:
                (folder / f"checkpoint-{step}" / "whole.json").unlink()
        assert train(again, ["save_total_limit=20"], resume=True)["steps"] == 12
        assert weights(folder) == weights(tmp_path / "whole")


def test_the_best_checkpoints_stay_beside_the_newest(tiny, tmp_path, measured):
    folder = tmp_path / "run"
    recipe = evaluated(tiny, folder, keep_best=2)
    train(recipe, ["max_steps=12"])
    assert steps(folder) == [4, 8, 10, 12], "0.5 and 0.5; the newest two"
    (folder / "metrics.json").unlink()
    train(recipe, ["max_steps=16"], resume=True, allow=["max_steps"])
    assert steps(folder) == [14, 16]


def test_another_metric_decides(tiny, tmp_path, measured):
    folder = tmp_path / "run"
    train(evaluated(tiny, folder, keep_best=1), ["metric_for_best_model=loss", "max_steps=6", "save_total_limit=1"])
    assert steps(folder) == [6], "the loss falls"


def test_evaluations_without_what_is_compared_stop_the_run(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model="accuracy")
    with pytest.raises(TrainingStoppedError, match=r"no 'accuracy' to compare.*images"):
        scores([{"step": 1, "eval_images": 0}], args)


def test_with_a_rate_that_follows_them_evaluations_are_part_of_the_recipe(tiny, tmp_path, raises_sentence):
    recipe = evaluated(tiny, tmp_path / "run")
    recipe["arguments"] |= {"lr_scheduler_type": "reduce_lr_on_plateau", "max_steps": 4}
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    with raises_sentence(TrainingRefusedError, "arguments.eval_steps"):
        train(recipe, ["eval_steps=1"], resume=True)


def test_with_early_stopping_evaluations_are_part_of_the_recipe(tiny, tmp_path, measured, raises_sentence):
    recipe = evaluated(tiny, tmp_path / "run", early_stopping=9)
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    with raises_sentence(TrainingRefusedError, "arguments.eval_steps"):
        train(recipe, ["eval_steps=1"], resume=True)


def test_the_best_weights_are_those_of_the_model_also_after_a_stop_at_the_end(
    tiny, tmp_path, measured, weights, raises_sentence
):
    recipe = evaluated(tiny, tmp_path / "run")
    best = ["max_steps=8", "load_best_model_at_end=true", "metric_for_best_model=accuracy", "save_total_limit=9"]
    train(recipe, best)
    ended = weights(tmp_path / "run")
    assert ended == (tmp_path / "run" / "checkpoint-4" / "model.safetensors").read_bytes()
    for name in ("metrics.json", "model.safetensors"):
        (tmp_path / "run" / name).unlink()
    with raises_sentence(TrainingRefusedError, "arguments.save_steps"):
        train(recipe, [*best, "save_steps=4"], resume=True)
    (tmp_path / "run").rename(tmp_path / "moved")  # the best checkpoint is where the run is, not where it was
    train(recipe, [*best, f"output_dir={tmp_path / 'moved'}"], resume=True)
    assert weights(tmp_path / "moved") == ended


@given(st.lists(st.floats(0, 1, width=16), min_size=1, max_size=12), st.integers(1, 4))
def test_what_a_log_says_is_what_a_list_says(values, patience):
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    log = [{"step": i, "eval_accuracy": value, "eval_loss": 0.0} for i, value in enumerate(values)]
    assert since_best(scores(log, args)) == len(values) - 1 - values.index(max(values))
    state = type("State", (), {"log_history": log})()
    reached = EarlyStopping(Optimisation(early_stopping=patience)).reached(state, args)
    assert reached == (len(values) - 1 - values.index(max(values)) >= patience)


def test_of_equal_checkpoints_the_older_is_better(tmp_path):
    args = TrainingArguments(output_dir="unused", use_cpu=True)
    log = [{"step": step, "eval_accuracy": value} for step, value in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.9))]
    for step in (1, 2, 3, 5):
        (tmp_path / f"checkpoint-{step}").mkdir()
    found = best_checkpoints(tmp_path, log, 2, args)
    assert [step_of(path) for path in found] == [2, 3], "4 was not saved, 5 not measured"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["early_stopping=0"], ["early_stopping=0", "1 or more"]),
        (["keep_best=2", "eval_strategy=no"], ["keep_best", "eval_strategy"]),
        (["keep_best=2", "save_steps=3"], ["save_steps"]),
        (["keep_best=2", "save_strategy=epoch"], ["save_strategy"]),
        (["early_stopping=2", "early_stopping_delta=-1"], ["early_stopping_delta=-1"]),
        (["keep_best=2", "eval_steps=0", "logging_steps=2", "save_steps=3"], ["save_steps"]),
        (["keep_best=2", "eval_steps=0.2", "save_steps=0.3"], ["16 steps", "every 5th is saved", "every 4th"]),
        (["keep_best=2", "eval_steps=0.5", "save_steps=12"], ["every 12th is saved", "every 8th"]),
        (["eval_steps=-1"], ["eval_steps=-1", "0 or more"]),
        (["load_best_model_at_end=true", "metric_for_best_model=acuracy"], ["'acuracy'", "did you mean accuracy?"]),
        (["early_stopping=1", "metric_for_best_model=f1"], ["'f1'", "loss or accuracy"]),
        (["early_stopping=1", "metric_for_best_model=average_loss"], ["'average_loss'", "loss or accuracy"]),
    ],
)
def test_what_does_not_go_together_is_refused(tiny, tmp_path, raises_sentence, settings, words):
    with raises_sentence(TrainingRefusedError, *words):
        train(evaluated(tiny, tmp_path / "run"), settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "settings",
    [
        ["eval_steps=0.125", "save_steps=0.5"],
        ["eval_steps=0.1", "save_steps=0.5", "max_steps=20"],
        ["eval_steps=0", "logging_steps=2"],
        ["average_decay=0.9", "metric_for_best_model=eval_average_accuracy"],
    ],
)
def test_what_goes_together_is_accepted(tiny, tmp_path, settings):
    train(evaluated(tiny, tmp_path / "run", keep_best=1), settings)


def test_a_plan_refuses_a_metric_that_is_not_measured(tiny, tmp_path, raises_sentence):
    with raises_sentence(TrainingRefusedError, "'acuracy'"):
        Run(Recipe.load(evaluated(tiny, tmp_path / "run"), ["metric_for_best_model=acuracy"])).dry_run()


def test_the_log_of_a_real_run_is_compared(tiny, tmp_path):
    folder = tmp_path / "run"
    train(evaluated(tiny, folder, keep_best=1), ["max_steps=8", "save_total_limit=1"])
    log = json.loads((folder / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    by_step = {entry["step"]: entry["eval_accuracy"] for entry in log if "eval_accuracy" in entry}
    best = max(by_step, key=lambda step: (by_step[step], -step))
    assert steps(folder) == sorted({8, best})


def test_the_newest_checkpoint_stays_beside_the_best_one(tiny, tmp_path, measured):
    """transformers removes it after the training, where one alone is kept and the best is known."""
    folder = tmp_path / "run"
    train(evaluated(tiny, folder), ["max_steps=6", "metric_for_best_model=accuracy", "save_total_limit=1"])
    assert steps(folder) == [4, 6], "0.5, and the newest"


def test_the_best_weights_are_checked_before_they_are_the_model(
    tiny, tiny_vit, tmp_path, measured, monkeypatch, raises_sentence
):
    load = RecipeTrainer._load_best_model

    def damaged(self):
        path = self.best_checkpoint / "model.safetensors"
        weights = load_file(path)
        del weights["classifier.weight"]  # from_pretrained would make a new one
        save_file(weights, path, {"format": "pt"})
        load(self)

    monkeypatch.setattr(RecipeTrainer, "_load_best_model", damaged)
    recipe = evaluated(tiny, tmp_path / "run") | {"model": tiny_vit}
    with raises_sentence(TrainingRefusedError, "checkpoint-4 is not whole"):
        train(recipe, ["max_steps=6", "load_best_model_at_end=true", "metric_for_best_model=accuracy"])
