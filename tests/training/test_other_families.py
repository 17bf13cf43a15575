"""Recipes for models of transformers: what they ask for is done, or refused in one sentence."""

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from qkvit.training import TrainingRefusedError, train, trainer
from qkvit.training.recipe import Recipe
from qkvit.training.run import Run


@pytest.fixture
def recipe(tiny, tiny_vit, tmp_path):
    """`recipe("folder", {...})`: of transformers' ViT, with these parts of the section `model`."""

    def make(folder="run", **model):
        made = tiny({"arguments": {"output_dir": str(tmp_path / folder), "max_steps": 3, "optim": "sgd"}})
        config = tiny_vit["config"] | {"initializer_range": 0.5} | model.pop("config", {})  # logits that differ
        return made | {"model": tiny_vit | model | {"config": config}}

    return make


@pytest.fixture
def started(recipe, tmp_path):
    """`started({...})`: a recipe that starts from a trained ViT."""
    train(recipe("start"))
    return lambda **model: (
        recipe("run") | {"model": {"type": "vit", "start": str(tmp_path / "start"), "config": {}} | model}
    )


def test_accumulated_steps_are_those_of_a_larger_batch(recipe, tmp_path):
    """Clipping and plain SGD feel the size of a gradient, as AdamW would not."""
    at_once = train(recipe("at once"), ["max_grad_norm=0"])
    halves = ["per_device_train_batch_size=4", "gradient_accumulation_steps=2"]
    in_halves = train(recipe("in halves"), ["max_grad_norm=0", *halves])
    assert in_halves["last_training_loss"] == pytest.approx(at_once["last_training_loss"], rel=1e-4)
    ours, theirs = (load_file(tmp_path / folder / "model.safetensors") for folder in ("in halves", "at once"))
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"config": {"hiden_layers": 3}}, ["model.config.hiden_layers", "num_hidden_layers"]),
        ({"config": {"drop_path_rate": 0.1}}, ["model.config.drop_path_rate"]),
        ({"config": {"classification_loss": "bce"}}, ["classification_loss", "binary_cross_entropy"]),
        ({"config": {"label_smoothing": 2.0}}, ["label_smoothing=2.0"]),
        ({"stochastic_depth": "uniform"}, ["stochastic_depth='uniform'", "'vit'"]),
        ({"config": {"num_channels": 1}}, ["num_channels=1", "images of 3"]),
        ({"config": {"problem_type": "regression"}}, ["problem_type='regression'"]),
    ],
)
def test_what_nothing_would_follow_is_refused(recipe, model, words):
    with pytest.raises(TrainingRefusedError) as caught:
        Run(Recipe.load(recipe(**model))).dry_run()
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize("loss", [{"label_smoothing": 0.5}, {"classification_loss": "binary_cross_entropy"}])
def test_a_loss_is_followed_with_new_and_with_other_weights(recipe, started, loss):
    losses = []
    for made in (recipe("plain"), recipe("new", config=loss), started(config=loss)):
        metrics = train(made)
        losses.append(metrics["last_training_loss"])
    assert abs(losses[1] - losses[0]) > 0.05
    assert abs(losses[2] - losses[0]) > 0.05


@pytest.mark.parametrize(
    ("part", "words"),
    [
        ({"config": {"hiden_size": 8}}, ["model.config.hiden_size"]),
        ({"config": {"image_size": 16}}, ["does not fit the weights", "position_embeddings"]),
        ({"type": "deit"}, ["model.type='deit'", "'vit'"]),
    ],
)
def test_what_does_not_fit_other_weights_is_refused(started, part, words):
    with pytest.raises(TrainingRefusedError) as caught:
        train(started(**part))
    assert all(word in str(caught.value) for word in words)


def test_a_size_that_a_model_does_not_take_is_refused_before_the_run(started, tmp_path, raises_sentence):
    with raises_sentence(TrainingRefusedError, "16 x 16 pixels", "change data.image_size"):
        train(started(), ["data.image_size=16"])
    assert not (tmp_path / "run").exists()


def test_a_head_of_other_classes_is_new_and_positions_are_not(recipe, started, tmp_path):
    part = started(config={"attn_implementation": "eager"})
    few = recipe("few")["data"] | {"source": str(tmp_path / "photos"), "images": None}
    for number, name in enumerate("abc"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for each in range(8):
            Image.new("RGB", (8, 8), (40 * number, 9 * each, 0)).save(tmp_path / "photos" / name / f"{each}.png")
    train(part | {"data": few})
    weights = load_file(tmp_path / "run" / "model.safetensors")
    assert weights["classifier.weight"].shape == (3, 16)
    before = load_file(tmp_path / "start" / "model.safetensors")["vit.embeddings.position_embeddings"]
    torch.testing.assert_close(weights["vit.embeddings.position_embeddings"], before, rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("rule", "moves"),
    [
        ("only head", lambda name: False),
        ("only *.embedder.*", lambda name: ".embedder." in name),
        ("all", lambda name: True),
    ],
)
def test_batch_statistics_stay_where_no_parameter_of_theirs_is_trained(tiny, tmp_path, rule, moves):
    config = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "eval_strategy": "steps", "eval_steps": 1}
    made = tiny({"arguments": arguments, "optimisation": {"trainable": rule, "find_batch_size": True}})
    train(made | {"model": {"type": "resnet", "config": config}})
    weights = load_file(tmp_path / "run" / "model.safetensors")
    means = {name: tensor for name, tensor in weights.items() if name.endswith("running_mean")}
    assert {name for name in means if means[name].any()} == {name for name in means if moves(name)}


def test_batch_statistics_are_those_of_one_process_where_a_model_is_measured(tiny, tmp_path, run_in_processes):
    """Each process has those of its own images, and the first one's are saved; also in the average of the weights."""
    config = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1], "layer_type": "basic"}
    arguments = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "per_device_train_batch_size": 4}
    made = tiny({"arguments": arguments, "optimisation": {"average_decay": 0.9}})

    def compared():
        measure, seen = trainer.evaluate, []

        def measured(model, *given, **settings):
            buffers = [None, None]
            torch.distributed.all_gather_object(buffers, [each.tolist() for each in model.buffers()])
            seen.append(buffers[0] == buffers[1] != [])
            return measure(model, *given, **settings)

        trainer.evaluate = measured
        train(made | {"model": {"type": "resnet", "config": config}})
        assert seen == [True, True]

    assert run_in_processes(2, compared) == [0, 0]
