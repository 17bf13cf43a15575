"""The recipe of the quickstart, on a few digits: it is reproducible, follows its schedule and saves a whole model."""

from itertools import groupby

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

from qkvit.training import digits
from qkvit.training.augmentation import warp_parameters
from qkvit.training.digits import Digits
from qkvit.training.quickstart import classify, quickstart_config, recipe, train_quickstart, training_arguments


def some_digits(count=96):
    random = np.random.default_rng(0)
    return Digits(random.integers(0, 256, (count, 28, 28)).astype(np.uint8), np.arange(count) % 10)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "model"
    model, log = train_quickstart(some_digits(), folder, seed=1, epochs=2)
    return folder, model, log


def test_the_same_seed_gives_the_same_model(trained, tmp_path):
    again, _ = train_quickstart(some_digits(), tmp_path, seed=1, epochs=2)
    for one, other in zip(trained[1].parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_another_seed_gives_another_model(trained, tmp_path):
    other, _ = train_quickstart(some_digits(), tmp_path, seed=2, epochs=2)
    assert not torch.equal(trained[1].classifier.weight, other.classifier.weight)


def test_every_epoch_has_warps_of_its_own(tmp_path, monkeypatch):
    seen = []

    def drawn(count, *, seed, epoch):
        seen.append((seed, epoch))
        return warp_parameters(count, seed=seed, epoch=epoch)

    monkeypatch.setattr(digits, "warp_parameters", drawn)
    train_quickstart(some_digits(), tmp_path, seed=7, epochs=3)
    assert [key for key, _ in groupby(seen)] == [(7, 0), (7, 1), (7, 2)]


def test_the_log_has_the_loss_of_each_epoch(trained):
    assert [entry["epoch"] for entry in trained[2] if "loss" in entry] == [1.0, 2.0]


def test_the_saved_model_is_the_trained_one(trained):
    folder, model, _ = trained
    loaded = AutoModelForImageClassification.from_pretrained(folder)
    few = some_digits(7)
    assert np.array_equal(classify(loaded.eval(), few), classify(model, few))


def test_a_pipeline_classifies_a_grey_image_file(trained, tmp_path):
    folder, model, _ = trained
    one = some_digits(1)
    Image.fromarray(one.images[0]).save(tmp_path / "digit.png")
    answer = pipeline("image-classification", str(folder), device="cpu")(str(tmp_path / "digit.png"))
    assert answer[0]["label"] == str(classify(model, one).argmax())


def test_the_saved_processor_takes_a_grey_image(trained):
    processor = AutoImageProcessor.from_pretrained(trained[0])
    assert processor(images=Image.new("L", (40, 50)), return_tensors="pt")["pixel_values"].shape == (1, 3, 28, 28)


def test_labels_are_the_digits():
    assert quickstart_config().id2label == {digit: str(digit) for digit in range(10)}


def test_the_warm_up_is_a_part_of_the_steps(tmp_path):
    settings = recipe(num_images=4000, seed=0, epochs=50)
    arguments = training_arguments(tmp_path, settings)
    steps = 50 * -(-4000 // arguments.per_device_train_batch_size)
    assert 0 < arguments.warmup_steps < steps / 4
