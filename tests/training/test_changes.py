"""A run that goes on says what has changed since it began, and refuses what was not allowed by name."""

import json
import shutil

import pytest

from qkvit.training import TrainingRefusedError, train
from qkvit.training import run as training_run
from qkvit.training.run_folder import check_changes


class TestChanges:
    @pytest.fixture
    def run(self, tiny, tmp_path):
        recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run")}})
        train(recipe)
        (tmp_path / "run" / "metrics.json").unlink()
        return recipe

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            (["learning_rate=2e-3"], ["arguments.learning_rate was 0.001", "0.002 now"]),
            (["seed=6"], ["arguments.seed"]),
            (["flip=0.5"], ["augmentation.flip"]),
            (["images=90"], ["data.images", "--allow"]),
        ],
    )
    def test_a_changed_recipe_is_refused(self, run, raises_sentence, settings, words):
        with raises_sentence(TrainingRefusedError, *words):
            train(run, settings, resume=True)

    def test_a_changed_recipe_is_accepted_by_name_and_said(self, run, capsys):
        train(run, ["max_steps=11"], resume=True, allow=["max_steps"])
        assert "arguments.max_steps: 9 before, 11 now" in capsys.readouterr().out

    def test_what_weights_do_not_depend_on_may_change(self, run):
        assert train(run, ["logging_steps=3", "dataloader_num_workers=1"], resume=True)["steps"] == 9

    def test_other_images_are_refused(self, run, raises_sentence, tmp_path):
        record = tmp_path / "run" / "run.json"
        content = json.loads(record.read_text())
        content["data"]["train"] = "99 images, 0123456789abcdef"
        record.write_text(json.dumps(content))
        with raises_sentence(TrainingRefusedError, "data (train)", "--allow data"):
            train(run, resume=True)

    def test_other_pixels_under_the_same_labels_are_refused(self, run, raises_sentence, monkeypatch):
        opened = training_run.open_splits

        def one_pixel_off(data):
            splits = opened(data)
            splits.train.images[len(splits.train) // 3, 0, 0] ^= 1
            return splits

        monkeypatch.setattr(training_run, "open_splits", one_pixel_off)
        with raises_sentence(TrainingRefusedError, "data (train)", "--allow data"):
            train(run, resume=True)

    def test_other_versions_are_said(self, run, tmp_path, capsys):
        record = tmp_path / "run" / "run.json"
        content = json.loads(record.read_text())
        now = content["versions"]["torch"]
        content["versions"]["torch"] = "1.0"
        record.write_text(json.dumps(content))
        train(run, resume=True)
        assert f"torch was '1.0' and is '{now}'" in capsys.readouterr().out
        starts = json.loads(record.read_text())["starts"]
        assert [start["versions"]["torch"] for start in starts] == [now, now]

    def test_a_run_without_a_checkpoint_says_that_it_begins_anew(self, run, tmp_path, capsys):
        for path in (tmp_path / "run").glob("checkpoint-*"):
            shutil.rmtree(path)
        assert train(run, resume=True)["steps"] == 9
        assert "There is no checkpoint in" in capsys.readouterr().out

    def test_another_number_of_processes_is_refused(self, run, raises_sentence, tmp_path):
        record = tmp_path / "run" / "run.json"
        record.write_text(json.dumps(json.loads(record.read_text()) | {"processes": 4}))
        with raises_sentence(TrainingRefusedError, "processes was 4"):
            train(run, resume=True)


def test_a_name_that_is_allowed_has_to_be_one(tiny, tmp_path, raises_sentence):
    recipe = tiny({"arguments": {"output_dir": str(tmp_path / "run"), "max_steps": 2}})
    train(recipe)
    (tmp_path / "run" / "metrics.json").unlink()
    with raises_sentence(TrainingRefusedError, "--allow max_stepps", "leave it out"):
        train(recipe, resume=True, allow=["max_stepps"])
    train(recipe, resume=True, allow=["max_steps", "data", "learning_rate"])  # nothing of that has changed


def test_what_is_allowed_may_be_bare_or_dotted():
    changes = {"arguments.lr_scheduler_kwargs.min_lr": (1, 2), "model.config.qkv_bias": (True, False)}
    for names in (("min_lr", "qkv_bias"), tuple(changes)):
        assert len(check_changes(changes, names)) == 2
