"""A recipe is checked before anything starts, and every field has a name on the command line."""

import contextlib
import dataclasses

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import SchedulerType, TrainingArguments, get_scheduler

from qkvit.training import Recipe, TrainingRefusedError, recipe
from qkvit.training.recipe import SHIPPED
from qkvit.training.recipe_types import ELSEWHERE


def load(values, *settings):
    return Recipe.load(values, list(settings))


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.yaml")))
def test_shipped_recipes_are_whole_and_come_back(name):
    recipe = Recipe.load(name)
    assert recipe.name == name
    assert Recipe.load(yaml.safe_load(recipe.to_yaml())) == recipe


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"modle": {}}, ["modle", "model"]),
        ({"data": {"sorce": "digits"}}, ["data.sorce", "source"]),
        ({"arguments": {"learning_rat": 1}}, ["arguments.learning_rat", "learning_rate"]),
        ({"arguments": {"learning_rate": "fast"}}, ["arguments.learning_rate='fast'", "number"]),
        ({"arguments": {"lr_scheduler_type": "cosin"}}, ["cosin", "cosine"]),
        ({"augmentation": {"crop": "resize"}}, ["augmentation.crop", "resized"]),
        ({"augmentation": {"crop_scale": [0.1]}}, ["augmentation.crop_scale", "2"]),
        ({"augmentation": {"crop_scale": [1.0, 0.1]}}, ["crop_scale"]),
        ({"augmentation": {"flip": 1.5}}, ["augmentation.flip=1.5"]),
        ({"augmentation": "all"}, ["augmentation"]),
        ({"arguments": {"label_smoothing_factor": 0.1}}, ["model.config.label_smoothing"]),
        ({"arguments": {"per_device_train_batch_size": 7}, "augmentation": {"mixup": 1}}, ["odd"]),
        ({"arguments": {"seed": -1}}, ["seed"]),
        ({"processes": 0}, ["processes=0"]),
        ({"data": {"images": -3}}, ["data.images=-3"]),
        ({"data": {"image_size": 0}}, ["data.image_size=0"]),
        ({"data": {"image_size": [8]}}, ["data.image_size=[8]"]),
        ({"data": {"mean": [0.5]}}, ["data.mean=[0.5]"]),
        ({"data": {"std": [1, 0, 1]}}, ["data.std"]),
        ({"data": {"mean": [0.5, float("inf"), 0.5]}}, ["data.mean", "finite"]),
        ({"data": {"mean": [0.5, float("nan"), 0.5]}}, ["data.mean[1]=nan", "number"]),
        ({"arguments": {"learning_rate": float("nan")}}, ["arguments.learning_rate=nan", "number"]),
        ({"arguments": {"use_liger_kernel": True}}, ["arguments.use_liger_kernel", "torch_compile"]),
        ({"data": {"evaluation_crop": 0}}, ["data.evaluation_crop=0"]),
        ({"augmentation": {"mixup": float("nan")}}, ["augmentation.mixup=nan"]),
        ({"augmentation": {"randaugment_operations": -1}}, ["augmentation.randaugment_operations=-1"]),
        ({"optimisation": {"warmup_epochs": -1}}, ["optimisation.warmup_epochs=-1"]),
        (
            {
                "optimisation": {"warmup_epochs": 1, "cooldown_epochs": 5},
                "arguments": {"lr_scheduler_type": "warmup_stable_decay", "num_train_epochs": 4},
            },
            ["warmup_epochs=1", "cooldown_epochs=5", "num_train_epochs=4"],
        ),
        (
            {"optimisation": {"warmup_epochs": 4}, "arguments": {"lr_scheduler_type": "constant"}},
            ["optimisation.warmup_epochs=4", "constant_with_warmup", "--set optimisation.warmup_epochs=0"],
        ),
        (
            {"arguments": {"lr_scheduler_type": "reduce_lr_on_plateau", "warmup_steps": 0.1}},
            ["arguments.warmup_steps=0.1", "reduce_lr_on_plateau has none"],
        ),
        ({"arguments": {"lr_scheduler_type": "greedy", "warmup_steps": 5}}, ["arguments.warmup_steps=5", "greedy"]),
        ({"optimisation": {"cooldown_epochs": 2}}, ["optimisation.cooldown_epochs=2", "warmup_stable_decay", "linear"]),
        ({"data": {"shuffle_window": 64}}, ["data.shuffle_window=64", "data.streaming"]),
        ({"augmentation": {"crop_scale": [0.3, 0.5]}}, ["augmentation.crop_scale=[0.3, 0.5]", "crop=resized"]),
        ({"augmentation": {"crop": "simple", "crop_ratio": [1, 1]}}, ["augmentation.crop_ratio", "crop=resized"]),
        ({"augmentation": {"crop": "resized", "crop_padding": 8}}, ["augmentation.crop_padding=8", "crop=simple"]),
        ({"augmentation": {"randaugment_magnitude": 10}}, ["randaugment_magnitude=10", "randaugment_operations"]),
        ({"augmentation": {"randaugment_spread": 0.5}}, ["randaugment_spread=0.5", "randaugment_operations"]),
        ({"augmentation": {"erasing_fill": "noise"}}, ["erasing_fill=noise", "augmentation.erasing;"]),
        ({"augmentation": {"mix_probability": 0.3}}, ["mix_probability=0.3", "mixup or cutmix"]),
        ({"augmentation": {"mixed_labels": "present"}}, ["mixed_labels=present", "mixed_labels=shares"]),
        ({"optimisation": {"early_stopping_delta": 0.1}}, ["early_stopping_delta=0.1", "optimisation.early_stopping;"]),
        ({"distillation": {"kind": "soft"}}, ["distillation.kind=soft", "distillation.teacher"]),
        ({"distillation": {"alpha": 0.9}}, ["distillation.alpha=0.9", '--set "distillation.alpha=0.5"']),
        ({"distillation": {"teacher": "there", "temperature": 3}}, ["distillation.temperature=3", "kind=soft"]),
        ({"arguments": {"learning_rate": -1e-3}}, ["arguments.learning_rate=-0.001"]),
        ({"arguments": {"gradient_accumulation_steps": 0}}, ["arguments.gradient_accumulation_steps=0"]),
        ({"arguments": {"max_steps": 0}}, ["arguments.max_steps=0"]),
    ],
)
def test_a_wrong_recipe_is_one_sentence_that_names_it(values, words):
    with pytest.raises(TrainingRefusedError) as caught:
        load(values)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("max_steps=7", lambda recipe: recipe.arguments["max_steps"] == 7),
        ("learning_rate=1e-3", lambda recipe: recipe.arguments["learning_rate"] == 0.001),
        ("output_dir=there", lambda recipe: recipe.arguments["output_dir"] == "there"),
        ("save_strategy=no", lambda recipe: recipe.arguments["save_strategy"] == "no"),
        ("mixup=0.8", lambda recipe: recipe.augmentation.mixup == 0.8),
        ("data.source=photos", lambda recipe: recipe.data.source == "photos"),
        ("crop_scale=[0.2, 1]", lambda recipe: recipe.augmentation.crop_scale == (0.2, 1.0)),
        ("average_decay=null", lambda recipe: recipe.optimisation.average_decay is None),
        ("hidden_size=48", lambda recipe: recipe.model.config["hidden_size"] == 48),
        (
            "model.config.layer_scale_init_value=1e-4",
            lambda recipe: recipe.model.config["layer_scale_init_value"] == 1e-4,
        ),
        ("processes=2", lambda recipe: recipe.processes == 2),
    ],
)
def test_any_field_can_be_set_by_its_name(setting, read):
    assert read(load({"augmentation": {"crop": "resized"}}, setting))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("learning_rat=1", ["--set learning_rat", "learning_rate"]),
        ("data.sourse=x", ["data.sourse", "data.source"]),
        ("seed", ["--set seed", "key=value"]),
        ("seed=one", ["seed='one'"]),
        ("=3", ["key=value"]),
        ("crop=[", ["--set crop=["]),
        ("lr_scheduler_kwargs={a: 1, a: 2}", ["--set lr_scheduler_kwargs"]),
    ],
)
def test_a_wrong_setting_is_one_sentence(setting, words):
    with pytest.raises(TrainingRefusedError) as caught:
        load({}, setting)
    assert "\n" not in str(caught.value)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize("kind", list(SchedulerType))
def test_a_schedule_without_warm_up_is_one_that_transformers_gives_none(kind):
    """Another one that ignores the warm-up would be promised it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    options = {"num_decay_steps": 5} if kind == "warmup_stable_decay" else {}
    options |= {"min_lr": 0.1} if "min_lr" in kind.value else {}
    get_scheduler(kind, optimizer, 10, 100, scheduler_specific_kwargs=options)
    warms_up = optimizer.param_groups[0]["lr"] < 1
    settings = {"optimisation": {"warmup_epochs": 1}, "arguments": {"lr_scheduler_type": kind.value}}
    with contextlib.nullcontext() if warms_up else pytest.raises(TrainingRefusedError):
        load(settings)
    load(settings, "warmup_epochs=0")


def test_a_name_that_two_sections_share_has_to_be_dotted(monkeypatch, raises_sentence):
    """None does yet: TrainingArguments may get one."""
    assert not [found for found in recipe._places().values() if len(found) > 1]
    known = recipe.known_arguments()
    monkeypatch.setattr(recipe, "known_arguments", lambda: known | {"source": str})
    with raises_sentence(TrainingRefusedError, "--set source may mean data.source or arguments.source"):
        load({}, "source=photos")
    assert load({}, "data.source=photos").data.source == "photos"
    assert recipe.is_key("source")


def test_a_missing_file_names_the_shipped_recipes(raises_sentence):
    with raises_sentence(TrainingRefusedError, "no recipe nowhere", "digits"):
        Recipe.load("nowhere")


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b", "\tx: 1", "\xff", "seed: 1\nseed: 2"])
def test_a_broken_file_is_one_sentence(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(TrainingRefusedError) as caught:
        Recipe.load(path)
    assert "\n" not in str(caught.value)


@given(st.dictionaries(st.text(max_size=8), st.none() | st.integers() | st.text(max_size=5) | st.lists(st.floats())))
def test_whatever_is_in_the_file_nothing_but_a_sentence_comes_out(values):
    with contextlib.suppress(TrainingRefusedError):
        load(values)


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_name_from_another_program_is_answered_with_ours(name):
    with pytest.raises(TrainingRefusedError, match=f"{name} is not known; did you mean {ELSEWHERE[name]}[?]"):
        Recipe.load("digits", [f"{name}=1"])


def test_numbers_with_an_exponent_are_numbers_wherever_they_stand(tmp_path):
    """YAML 1.1, which PyYAML follows, reads 1e-5 as text."""
    path = tmp_path / "my.yaml"
    path.write_text(
        "model: {config: {initializer_range: 1e-3}}\n"
        "arguments: {lr_scheduler_type: cosine_with_min_lr, lr_scheduler_kwargs: {min_lr: 2E-5}}\n"
    )
    recipe = Recipe.load(path)
    assert recipe.model.config["initializer_range"] == 1e-3
    assert recipe.arguments["lr_scheduler_kwargs"] == {"min_lr": 2e-5}
    assert Recipe.load("digits", ["initializer_range=1e-3"]).model.config["initializer_range"] == 1e-3
    assert Recipe.load({"name": "1e5"}, ["run_name=1e-3"]).arguments["run_name"] == "1e-3"


@pytest.mark.parametrize(
    "setting", ["save_only_model=true", "ignore_data_skip=true", "enable_jit_checkpoint=true", "bf16_full_eval=true"]
)
def test_arguments_that_would_break_resuming_or_do_nothing_are_refused(setting):
    with pytest.raises(TrainingRefusedError, match="is not for recipes; use"):
        Recipe.load("digits", [setting])
    name = setting.partition("=")[0]
    default = next(each.default for each in dataclasses.fields(TrainingArguments) if each.name == name)
    assert Recipe.load("digits", [f"{name}={default}".lower()]).arguments[name] == default


def test_what_a_recipe_says_of_its_own_data_is_not_said_of_others():
    known = Recipe.load("cifar10-scratch").data
    assert (known.known_images, known.known_classes) == (45000, 10)
    assert Recipe.load("cifar10-scratch", ["learning_rate=1"]).data.known_images == 45000
    for setting in ("data.source=me/flowers", "data.images=1000", "held_out=0.5", "train_split=all"):
        other = Recipe.load("cifar10-scratch", [setting]).data
        assert (other.known_images, other.known_classes) == (None, None)
    said = Recipe.load("cifar10-scratch", ["data.source=me/flowers", "known_images=9", "known_classes=2"]).data
    assert (said.known_images, said.known_classes) == (9, 2)


def test_a_section_that_is_written_twice_is_named(tmp_path, raises_sentence):
    path = tmp_path / "twice.yaml"
    path.write_text("augmentation: {mixup: 0.4}\ndata: {source: digits}\naugmentation: {flip: 0.5}\n")
    with raises_sentence(TrainingRefusedError, "augmentation is written twice", "line 3"):
        Recipe.load(path)
    path.write_text("data: &data {source: *data}\n")
    with raises_sentence(TrainingRefusedError, "recursive node", "line 1"):
        Recipe.load(path)
    path.write_text("data: &data {source: digits}\nmodel:\n  config: {<<: {hidden_size: 8}, hidden_size: 16}\n")
    assert Recipe.load(path).model.config["hidden_size"] == 16, "what is merged may be replaced"


@pytest.mark.parametrize(
    ("name", "settings", "switched"),
    [
        ("vit-s16-in1k-90ep", ["randaugment_operations=0"], ["randaugment_magnitude", "randaugment_table"]),
        ("mae-finetune-b16", ["--augmentation.erasing=0"], ["erasing_fill"]),
        ("clothing-finetune", ["crop=none"], ["crop_scale"]),
    ],
)
def test_what_depends_on_a_switch_goes_with_it(name, settings, switched):
    """As in an ablation of a shipped recipe, which sets what its augmentation needs."""
    shipped, made = (Recipe.load(name, given).augmentation for given in ([], settings))
    for field in switched:
        assert getattr(shipped, field) != getattr(type(shipped), field)
        assert getattr(made, field) == getattr(type(made), field)
    with pytest.raises(TrainingRefusedError, match="erasing_fill=noise is without effect"):
        Recipe.load("mae-finetune-b16", ["erasing=0", "erasing_fill=noise"])
