"""The digits, their split and what a model gets to see of them."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from qkvit.training.baselines import logistic_regression_accuracy, nearest_neighbour_accuracy
from qkvit.training.digits import Digits, DigitsDataset, as_it_is, load_digits, pixel_values
from qkvit.training.quickstart import image_processor, quickstart_config


@pytest.fixture(scope="module")
def digits():
    return load_digits()


def test_the_split_is_4000_and_1000_with_as_many_of_each_digit(digits):
    train, held_out = digits
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(held_out.labels).tolist() == [100] * 10


def test_the_split_never_changes(digits):
    """Published accuracies are about these held-out digits."""
    _, held_out = digits
    assert hashlib.sha256(held_out.images.tobytes() + held_out.labels.tobytes()).hexdigest()[:16] == "e7ce08cf8285993d"


def test_no_held_out_digit_is_trained_on(digits):
    train, held_out = digits
    assert not {image.tobytes() for image in train.images} & {image.tobytes() for image in held_out.images}


def test_the_baselines_are_as_good_as_they_should_be(digits):
    assert nearest_neighbour_accuracy(*digits) == pytest.approx(0.935, abs=0.002)
    assert logistic_regression_accuracy(*digits) == pytest.approx(0.901, abs=0.003)


def test_a_model_sees_what_its_image_processor_makes(digits):
    images = digits[1].images[:4]
    processed = image_processor(quickstart_config())(
        images=[Image.fromarray(image) for image in images], return_tensors="pt"
    )
    torch.testing.assert_close(processed["pixel_values"], pixel_values(torch.from_numpy(images)), atol=1e-6, rtol=0)


def some_digits(count=12):
    random = np.random.default_rng(0)
    return Digits(random.integers(0, 256, (count, 28, 28)).astype(np.uint8), np.arange(count) % 10)


def test_a_loader_gives_whole_batches():
    loader = DataLoader(DigitsDataset(some_digits()), batch_size=5, collate_fn=as_it_is)
    assert [tuple(batch["pixel_values"].shape) for batch in loader] == [(5, 3, 28, 28), (5, 3, 28, 28), (2, 3, 28, 28)]


def test_what_happens_to_a_digit_depends_on_seed_epoch_and_index_alone():
    dataset, again = (DigitsDataset(some_digits(), augmentation_seed=3) for _ in range(2))
    for each in (dataset, again):
        each.set_epoch(2)
    together = dataset.__getitems__([7, 1, 4])["pixel_values"]
    torch.testing.assert_close(together[1], again[1]["pixel_values"])


@pytest.mark.parametrize(("seed", "epoch"), [(3, 1), (4, 2)])
def test_another_seed_or_epoch_warps_anew(seed, epoch):
    dataset, other = DigitsDataset(some_digits(), augmentation_seed=3), DigitsDataset(some_digits(), seed)
    dataset.set_epoch(2)
    other.set_epoch(epoch)
    assert not torch.allclose(dataset[0]["pixel_values"], other[0]["pixel_values"])


def test_without_augmentation_digits_are_as_they_are():
    dataset = DigitsDataset(some_digits())
    dataset.set_epoch(5)
    assert dataset[3]["pixel_values"].equal(pixel_values(dataset.images[3:4])[0])
