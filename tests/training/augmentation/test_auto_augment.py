"""AutoAugment: the published tables, drawn by the image alone."""

import pytest
import torch
from PIL import Image, ImageOps

from qkvit.training.augmentation.auto_augment import OPERATIONS, POLICIES, auto_augment
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.recipe import Augmentation


def keys_of(count, epoch=0):
    return torch.tensor([[epoch, index, 0] for index in range(count)])


@pytest.fixture
def images():
    return torch.rand(50, 3, 12, 10, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("policy", POLICIES)
def test_an_image_is_changed_the_same_in_every_batch_and_stays_an_image(images, policy):
    whole = auto_augment(images.clone(), policy, 0, keys_of(50))
    assert whole.min() >= 0
    assert whole.max() <= 1
    for part in (slice(0, 7), slice(7, 50)):
        torch.testing.assert_close(auto_augment(images[part].clone(), policy, 0, keys_of(50)[part]), whole[part])
    assert not torch.equal(whole, auto_augment(images.clone(), policy, 1, keys_of(50)))
    assert not torch.equal(whole, auto_augment(images.clone(), policy, 0, keys_of(50, epoch=1)))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_pair_is_drawn_as_often_and_every_operation_with_its_probability(policy, monkeypatch):
    """Each operation is replaced by one that counts; 20,000 images."""
    counts = dict.fromkeys(OPERATIONS[policy], 0)

    def counting(name):
        def operation(images, strength, sign):
            counts[name] += len(images)
            return images + 0.25

        return operation

    monkeypatch.setitem(OPERATIONS, policy, {name: counting(name) for name in OPERATIONS[policy]})
    applied = auto_augment(torch.zeros(20_000, 1, 1, 1), policy, 0, keys_of(20_000)).flatten() * 4
    for name, count in counts.items():
        expected = sum(chance for pair in POLICIES[policy] for each, chance, _ in pair if each == name) / 25
        assert count / 20_000 == pytest.approx(expected, abs=0.012), name
    both = sum(first[1] * second[1] for first, second in POLICIES[policy]) / 25
    assert (applied == 2).float().mean() == pytest.approx(both, abs=0.012), "one does not decide for the other"


@pytest.mark.parametrize(
    ("policy", "name", "magnitude", "reference"),
    [
        ("imagenet", "solarise", 5, lambda image: ImageOps.solarize(image, 128)),
        ("imagenet", "posterise", 8, lambda image: ImageOps.posterize(image, 7)),
        ("cifar10", "solarise", 8, lambda image: ImageOps.solarize(image, 256 - 204)),
        ("cifar10", "posterise", 7, lambda image: ImageOps.posterize(image, 2)),
        ("imagenet", "invert", 0, ImageOps.invert),
    ],
)
def test_magnitudes_mean_what_the_docstring_says(policy, name, magnitude, reference):
    image = Image.effect_noise((16, 16), 90).convert("RGB")

    def as_tensor(picture):
        return torch.tensor(list(picture.tobytes())).view(1, 16, 16, 3).permute(0, 3, 1, 2) / 255

    strength = torch.tensor([magnitude]) / 10
    changed = OPERATIONS[policy][name](as_tensor(image), strength, torch.ones(1))
    torch.testing.assert_close(changed, as_tensor(reference(image)), atol=1e-6, rtol=0)


def test_a_recipe_can_ask_for_it(images):
    settings = Augmentation(autoaugment="cifar10")
    bytes_ = (images * 255).round().to(torch.uint8)
    pixels, _ = Augmenter(settings, 0, (0.0,) * 3, (1.0,) * 3, 4)(bytes_, torch.zeros(50).long(), keys_of(50))
    torch.testing.assert_close(pixels, auto_augment(bytes_.float() / 255, "cifar10", 0, keys_of(50)))
