"""The transfer examples run from the command line on a model and images of anybody, and learn."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor

from qkvit import QKViTForImageClassification, QKViTModel

ROOT = Path(__file__).resolve().parents[2]
COLOURS = {"blue": (40, 60, 200), "green": (40, 180, 60), "red": (200, 50, 40)}


@pytest.fixture
def example(monkeypatch):
    """`example("linear_probe")`: the script as a module, as Python finds its neighbours when it is run."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if str(ROOT / "examples") in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Noisy pictures of three colours, in three splits."""
    folder, rng = tmp_path_factory.mktemp("colours"), np.random.default_rng(0)
    for split, count in (("train", 12), ("validation", 4), ("test", 6)):
        for name, colour in COLOURS.items():
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.clip(rng.normal(colour, 40, (20 + i, 24, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, tiny_model):
    """The folder of a base model."""
    folder = tmp_path_factory.mktemp("base")
    tiny_model(QKViTModel, num_hidden_layers=2).save_pretrained(folder)
    return folder


def run(monkeypatch, module, *arguments):
    monkeypatch.setattr(sys, "argv", ["example.py", *map(str, arguments)])
    return module.main()


def test_the_linear_probe_learns_and_computes_features_once(example, images, pretrained, tmp_path, monkeypatch, capsys):
    probe = example("linear_probe")
    arguments = ["--model", pretrained, "--data", images, "--size", 16, "--cache", tmp_path, "--device", "cpu"]
    first = run(monkeypatch, probe, *arguments)
    assert first["test accuracy"] > 0.9
    assert first["trained on"] == 48
    assert json.loads(capsys.readouterr().out) == first

    monkeypatch.setattr(probe, "features", lambda *_, **__: pytest.fail("features were computed again"))
    again = run(monkeypatch, probe, *arguments)
    assert again["test accuracy"] == first["test accuracy"]


def test_other_weights_have_features_of_their_own(example, images, tiny_model):
    probe, transfer = example("linear_probe"), example("transfer")
    source, prepare = probe.open_images(images, split="test"), transfer.Prepare(16)
    models = [tiny_model(QKViTModel, seed=seed) for seed in (0, 0, 1)]
    first, same, other = (probe.fingerprint(model, source, prepare) for model in models)
    assert first == same != other
    assert probe.fingerprint(models[0], source, transfer.Prepare(20)) != first


def test_the_probe_s_features_are_class_token_and_mean_of_the_patches(example, images, tiny_model):
    probe, transfer = example("linear_probe"), example("transfer")
    model = tiny_model(QKViTModel, num_register_tokens=2)
    source, prepare = probe.open_images(images, split="test"), transfer.Prepare(16)
    found = probe.features(model, source, prepare, batch_size=7)
    with torch.no_grad():
        tokens = model(prepare(source[8].image)[None]).last_hidden_state[0]
    expected = torch.cat([tokens[0], tokens[3:].mean(0)])
    np.testing.assert_allclose(found["features"][8], expected.numpy(), rtol=1e-4, atol=1e-5)
    assert found["labels"].tolist() == [source[i].label for i in range(len(source))]


@pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning")
def test_fine_tuning_learns_and_saves_a_model_that_is_evaluated_as_it_was(
    example, images, pretrained, tmp_path, monkeypatch
):
    finetune = example("finetune")
    arguments = ["--model", pretrained, "--data", images, "--output", tmp_path / "run", "--size", 16, "--workers", 0]
    result = run(
        monkeypatch, finetune, *arguments, "--epochs", 8, "--batch-size", 12, "--learning-rate", 3e-3, "--drop-path", 0
    )
    assert result["test_accuracy"] > 0.9
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"] == result["test_accuracy"]

    model = QKViTForImageClassification.from_pretrained(tmp_path / "run" / "model")
    assert list(model.config.id2label.values()) == list(COLOURS)
    assert model.config.pooling == "class_mean"
    processor = AutoImageProcessor.from_pretrained(tmp_path / "run" / "model")
    right = 0
    for path in (images / "test").rglob("*.png"):
        with Image.open(path) as image, torch.no_grad():
            logits = model(**processor(image, return_tensors="pt")).logits[0]
        right += model.config.id2label[logits.argmax().item()] == path.parent.name
    assert right / 18 == pytest.approx(result["test_accuracy"], abs=1 / 18)


def test_every_parameter_is_trained_once_and_lower_layers_more_slowly(example, tiny_model):
    finetune = example("finetune")
    model = finetune.classifier_on(tiny_model(QKViTModel), ["a", "b"], 0.1)
    groups = finetune.parameter_groups(model, rate=1.0, layer_decay=0.5, weight_decay=0.1)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in model.parameters())

    def group_of(parameter):
        return next(group for group in groups if any(parameter is other for other in group["params"]))

    layers = model.qkvit.layers
    rates = [group_of(layer.mlp.up_proj.weight)["lr"] for layer in layers]
    assert rates == [0.125, 0.25, 0.5]
    assert group_of(model.classifier.weight)["lr"] == 1.0
    assert group_of(model.qkvit.embeddings.position_embeddings)["lr"] == 0.0625
    assert group_of(layers[0].mlp.up_proj.weight)["weight_decay"] == 0.1
    assert group_of(layers[0].mlp_norm.weight)["weight_decay"] == 0.0


def test_preparation_keeps_the_shape_that_the_settings_for_transformers_state(example):
    transfer = example("transfer")
    prepare = transfer.Prepare(16, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (31, 50, 3), dtype=np.uint8))
    from transformers import BitImageProcessorPil

    settings = {name: value for name, value in prepare.settings().items() if name != "image_processor_type"}
    theirs = BitImageProcessorPil(**settings)(image, return_tensors="pt")["pixel_values"][0]
    ours = prepare(image)
    assert ours.shape == (3, 16, 16)
    assert (ours - theirs).abs().mean() < 0.05
    torch.manual_seed(0)
    augmented = transfer.Prepare(16, augment=True)
    first, second = augmented(image), augmented(image)
    assert first.shape == (3, 16, 16)
    assert not torch.equal(first, second)
