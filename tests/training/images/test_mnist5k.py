"""The digits, their split and what a model gets to see of them."""

import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

from qkvit.training import Recipe
from qkvit.training.baselines import logistic_regression_accuracy, nearest_neighbour_accuracy
from qkvit.training.images.mnist5k import load_digits, pixel_values
from qkvit.training.models import build_model, build_processor


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
    recipe = Recipe.load("mnist5k")
    model = build_model(recipe, [str(digit) for digit in range(10)])
    processed = build_processor(recipe.data, model, None)(
        images=[Image.fromarray(image) for image in images], return_tensors="pt"
    )
    torch.testing.assert_close(processed["pixel_values"], pixel_values(torch.from_numpy(images)), atol=1e-6, rtol=0)
