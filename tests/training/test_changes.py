"""A run that goes on says what has changed since it began, and refuses what was not allowed by name."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file

from qkvit.training import TrainingRefusedError, TrainingStoppedError, train
from qkvit.training import run as training_run
from qkvit.training.checkpoints import checkpoints
from qkvit.training.recipe import Recipe
from qkvit.training.run_folder import changes_since, check_changes, read_record
from qkvit.training.trainer import RecipeTrainer


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

    def test_a_field_that_is_newer_than_the_run_had_its_default(self, run, tmp_path):
        file = tmp_path / "run" / "recipe.yaml"
        content = yaml.safe_load(file.read_text())
        del content["augmentation"]["randaugment_table"]
        file.write_text(yaml.safe_dump(content))
        recipe = Recipe.load(run)
        of_data = read_record(tmp_path / "run")["data"]
        assert changes_since(tmp_path / "run", recipe, of_data, 1) == {}
        recipe.augmentation.randaugment_table = "timm"
        changes = changes_since(tmp_path / "run", recipe, of_data, 1)
        assert changes == {"augmentation.randaugment_table": ("standard", "timm")}

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


@pytest.fixture
def after_step_4(tiny, tmp_path):
    """`after_step_4({...}, ...)`: a run of 9 steps with these recipe parts that was killed after its fourth."""

    def make(*parts):
        kept = {"arguments": {"save_total_limit": 9, "output_dir": str(tmp_path / "run")}}
        recipe = tiny(kept, *parts)
        train(recipe)
        (tmp_path / "run" / "metrics.json").unlink()
        for path in checkpoints(tmp_path / "run")[:-2]:
            shutil.rmtree(path)
        assert [path.name for path in checkpoints(tmp_path / "run")] == ["checkpoint-4", "checkpoint-2"]
        return recipe

    return make


def log_of(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def settings_of(folder):
    """Of each group, with its rate."""
    groups = torch.load(folder / "optimizer.pt", weights_only=True)["param_groups"]
    names = {"initial_lr", "lr", "weight_decay", "betas", "eps"}
    return [{name: group[name] for name in names & group.keys()} for group in groups]


@pytest.mark.parametrize("own", [{}, {"optimisation": {"optimizer": "muon"}}])
def test_settings_of_the_optimizer_that_are_allowed_are_followed_from_the_next_step_on(
    after_step_4, busy, tmp_path, monkeypatch, own
):
    """Also where the run that they were allowed for is killed before it saves."""
    recipe = after_step_4(busy, {"arguments": {"weight_decay": 0.1}}, own)
    new = ["learning_rate=4e-3", "weight_decay=0.3", "warmup_epochs=0.25", "lr_scheduler_type=linear", "max_steps=11"]
    new += [] if own else ["adam_beta2=0.99", "adam_epsilon=1e-6"]
    seed = RecipeTrainer._seed_step

    def stops(self):
        if self.state.global_step == 5:
            raise TrainingStoppedError("killed")
        return seed(self)

    with monkeypatch.context() as patch:
        patch.setattr(RecipeTrainer, "_seed_step", stops)
        with pytest.raises(TrainingStoppedError, match="killed"):
            train(recipe, new, resume=True, allow=[setting.partition("=")[0] for setting in new])
    train(recipe, new, resume=True)
    train(recipe, [*new, f"output_dir={tmp_path / 'always'}"])
    ours, theirs = (tmp_path / folder / "checkpoint-11" for folder in ("run", "always"))
    rates = [[entry["learning_rate"] for entry in log_of(each) if "loss" in entry] for each in (ours, theirs)]
    assert len(rates[1]) == 11
    assert rates[0][4:] == rates[1][4:]
    assert rates[0][:4] != rates[1][:4]
    assert settings_of(ours) == settings_of(theirs)
    assert max(group["weight_decay"] for group in settings_of(ours)) == 0.3


def test_a_rate_that_evaluations_have_made_does_not_change(after_step_4, raises_sentence):
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 2}
    recipe = after_step_4({"arguments": {**plateau, "weight_decay": 0.1}})
    for setting in ("learning_rate=1e-4", "lr_scheduler_type=cosine", "lr_scheduler_kwargs={patience: 0}"):
        name = setting.partition("=")[0]
        with raises_sentence(TrainingRefusedError, f"arguments.{name}", "cannot change in the middle of a run"):
            train(recipe, [setting], resume=True, allow=[name, "patience"])
    assert train(recipe, ["weight_decay=0.3"], resume=True, allow=["weight_decay"])["steps"] == 9


def test_what_cannot_change_in_the_middle_of_a_run_leaves_it_as_it_was(after_step_4, tmp_path, raises_sentence):
    recipe = after_step_4()
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()}
    for setting in (
        *("average_decay=0.9", "trainable=only head", "no_decay=[norm]", "layer_decay=0.5", "optimizer=muon"),
        *("optim=sgd", "type=vit", "hidden_size=32", "num_hidden_layers=1", "data.image_size=16"),
    ):
        if setting == "data.image_size=16":
            recipe["model"]["config"].pop("image_size")  # the model's is that of the data then
        name = setting.partition("=")[0]
        words = "does not take" if "size" in name or "layers" in name else "cannot change in the middle of a run"
        with raises_sentence(TrainingRefusedError, words):
            train(recipe, [setting], resume=True, allow=[name, "model.type", "image_size"])
        assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir() if path.is_file()} == before, setting


def test_the_other_form_of_adamw_may_be_allowed(after_step_4, tmp_path):
    """It has the same state and the same formula."""
    recipe = after_step_4()
    train(recipe, ["optim=adamw_torch"], resume=True, allow=["optim"])
    train(recipe, [f"output_dir={tmp_path / 'whole'}"])
    found, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("run", "whole"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
