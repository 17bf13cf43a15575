"""Augmentation: nothing but the image's key decides; each operation does what it says."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkvit.training.augmentation import operations as op
from qkvit.training.augmentation.crops import draw_crops
from qkvit.training.augmentation.mixing import mix, symmetric_beta
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.augmentation.policies import erase
from qkvit.training.recipe import Augmentation

EVERYTHING = Augmentation(
    crop="resized",
    flip=0.5,
    brightness=0.3,
    contrast=0.3,
    saturation=0.3,
    three_augment=True,
    randaugment_operations=2,
    randaugment_spread=0.5,
    warp=True,
    erasing=0.5,
    erasing_fill="noise",
    mixup=0.8,
    cutmix=1.0,
)
HALF = (0.5, 0.5, 0.5)


def keys_of(indices, epoch=0):
    return torch.tensor([[epoch, index, 0] for index in indices])


def crop_batch(images, size, settings, seed, keys):
    return torch.stack(
        [crop.cut(image) for crop, image in zip(draw_crops(size, settings, seed, keys), images, strict=True)]
    )


def resized_crop_boxes(sizes, seed=0, **settings):
    crops = draw_crops((8, 8), Augmentation(crop="resized", **settings), seed, keys_of(range(len(sizes))))
    return [crop.box(size) for crop, size in zip(crops, sizes, strict=True)]


def pictures(count, size=(24, 20)):
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 256, (size[1] + i, size[0], 3)).astype(np.uint8)) for i in range(count)]


def augmented(settings, indices, *, seed=0, epoch=0, batch=None):
    """Pixels and targets, in batches of `batch`."""
    images, augmenter = pictures(16), Augmenter(settings, seed, HALF, HALF, num_labels=4)
    parts = []
    for start in range(0, len(indices), batch or len(indices)):
        some = indices[start : start + (batch or len(indices))]
        keys = keys_of(some, epoch)
        cropped = crop_batch([images[index] for index in some], (16, 16), settings, seed, keys)
        parts.append(augmenter(cropped, torch.tensor(some) % 4, keys))
    return tuple(torch.cat(each) for each in zip(*parts, strict=True))


def test_an_image_is_augmented_the_same_in_every_batch():
    indices = [3, 9, 4, 1, 15, 0, 7, 2]
    whole = augmented(EVERYTHING, indices)
    for batch in (2, 4):
        for one, other in zip(whole, augmented(EVERYTHING, indices, batch=batch), strict=True):
            torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"epoch": 1}])
def test_seed_and_epoch_augment_anew(changed):
    pixels, _ = augmented(EVERYTHING, [3, 9, 4, 1])
    assert not torch.allclose(pixels, augmented(EVERYTHING, [3, 9, 4, 1], **changed)[0])


def test_one_operation_does_not_change_what_another_draws():
    flipped, _ = augmented(Augmentation(flip=0.5), list(range(8)))
    both, _ = augmented(Augmentation(flip=0.5, erasing=1e-9), list(range(8)))
    assert flipped.equal(both)


def test_without_augmentation_an_image_is_only_resized_and_normalised():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8))
    cropped = crop_batch([image], (16, 16), Augmentation(), 0, keys_of([0]))
    pixels, _ = Augmenter(Augmentation(), 0, HALF, HALF, 4)(cropped, torch.tensor([0]), keys_of([0]))
    expected = as_tensor(image)[0] * 2 - 1
    torch.testing.assert_close(pixels[0], expected, atol=1e-6, rtol=0)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 300)), min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_crops_lie_within_the_image(sizes, seed):
    boxes = resized_crop_boxes(sizes, seed)
    for (width, height), (left, top, right, bottom) in zip(sizes, boxes, strict=True):
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_crops_have_the_areas_and_ratios_of_the_recipe():
    boxes = resized_crop_boxes([(400, 300)] * 4000, crop_scale=(0.2, 0.6))
    left, top, right, bottom = (np.array(side, dtype=float) for side in zip(*boxes, strict=True))
    area, ratio = (right - left) * (bottom - top) / 120_000, (right - left) / (bottom - top)
    assert area.min() > 0.19
    assert area.max() < 0.61
    assert area.mean() == pytest.approx(0.4, abs=0.01)
    assert np.log(ratio).mean() == pytest.approx(0, abs=0.02)
    assert 0.74 < ratio.min() < ratio.max() < 1.35


@pytest.mark.parametrize("crop", ["resized", "simple", "none"])
def test_every_crop_gives_the_size_that_was_asked_for(crop):
    images = [*pictures(3), Image.new("RGB", (1, 40)), Image.new("RGB", (300, 5))]
    assert crop_batch(images, (12, 20), Augmentation(crop=crop), 0, keys_of(range(5))).shape == (5, 3, 12, 20)


class TestOperations:
    images = torch.rand(6, 3, 14, 18, generator=torch.Generator().manual_seed(0))

    @pytest.mark.parametrize(
        ("name", "strength", "reference"),
        [
            ("brightness", 1.6, lambda image, enhance: enhance.Brightness(image).enhance(1.6)),
            ("contrast", 1.6, lambda image, enhance: enhance.Contrast(image).enhance(1.6)),
            ("saturation", 0.3, lambda image, enhance: enhance.Color(image).enhance(0.3)),
            ("sharpness", 1.8, lambda image, enhance: enhance.Sharpness(image).enhance(1.8)),
        ],
    )
    def test_factors_are_those_of_pillow(self, name, strength, reference):
        from PIL import ImageEnhance

        image = pictures(1)[0]
        ours = getattr(op, name)(as_tensor(image), torch.tensor([strength]))
        torch.testing.assert_close(ours, as_tensor(reference(image, ImageEnhance)), atol=2.6 / 255, rtol=0)

    def test_equalise_is_that_of_pillow(self):
        from PIL import ImageOps

        image = Image.fromarray(np.random.default_rng(0).integers(60, 120, (64, 64, 3)).astype(np.uint8))
        ours = op.equalise(as_tensor(image))
        torch.testing.assert_close(ours, as_tensor(ImageOps.equalize(image)))

    def test_contrast_is_stretched_to_the_whole_range_and_one_value_stays(self):
        images = 0.2 + 0.5 * self.images
        images[0, 1] = 0.3
        stretched = op.auto_contrast(images)
        low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
        expected = (images - low) / (high - low)
        expected[0, 1] = 0.3
        torch.testing.assert_close(stretched, expected)

    def test_a_rotation_by_a_right_angle(self):
        square = self.images[:1, :, :14, :14]
        turned = op.affine(square, torch.tensor([90.0]), torch.zeros(1, 2), torch.zeros(1, 2))
        matches = [torch.allclose(turned, square.rot90(times, (2, 3)), atol=1e-4) for times in (1, 3)]
        assert any(matches)

    def test_a_shift_by_half_of_the_width(self):
        shifted = op.affine(self.images, torch.zeros(6), torch.zeros(6, 2), torch.tensor([[0.5, 0.0]] * 6))
        torch.testing.assert_close(shifted[..., :9], self.images[..., 9:], atol=1e-4, rtol=0)
        torch.testing.assert_close(shifted[..., 9:], torch.full_like(shifted[..., 9:], 0.5), atol=1e-4, rtol=0)

    def test_blur_keeps_the_mean_of_a_flat_image_and_spreads_a_point(self):
        flat = torch.full((1, 3, 16, 16), 0.3)
        torch.testing.assert_close(op.blur(flat, torch.tensor([1.5])), flat)
        point = torch.zeros(1, 3, 15, 15)
        point[..., 7, 7] = 1
        spread = op.blur(point, torch.tensor([1.0]))
        assert spread.sum((2, 3)).allclose(torch.ones(1, 3), atol=1e-3)
        assert spread[0, 0, 7, 8] / spread[0, 0, 7, 7] == pytest.approx(np.exp(-0.5), rel=1e-3)


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255


@pytest.mark.parametrize("fill", ["mean", "noise"])
def test_erasing_takes_its_share_of_images_and_area(fill):
    pixels = torch.full((600, 1, 32, 32), 9.0)
    erased = erase(pixels, Augmentation(erasing=0.25, erasing_fill=fill), 0, keys_of(range(600)))
    gone = (erased != 9).float().mean((1, 2, 3))
    assert (gone > 0).float().mean() == pytest.approx(0.25, abs=0.05)
    assert gone[gone > 0].mean() == pytest.approx((0.02 + 1 / 3) / 2, abs=0.03)
    assert gone.max() < 0.36
    assert erased is pixels, "in place"
    for each in (erased != 9).any(1)[gone > 0]:  # one box, and nothing outside of it
        rows, columns = each.any(1).nonzero(), each.any(0).nonzero()
        assert each[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].all()


@pytest.mark.parametrize("operation", [op.brightness, op.contrast, op.saturation])
def test_colours_are_changed_in_place_where_that_is_asked_for_and_nowhere_else(operation):
    images, factor = torch.rand(3, 3, 5, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.5, 1.0, 1.7])
    kept = images.clone()
    changed = operation(images, factor)
    assert torch.equal(images, kept)
    assert operation(images, factor, inplace=True) is images
    assert torch.equal(images, changed)
    assert not torch.equal(images, kept)


@pytest.mark.parametrize(
    "settings", [{"brightness": 0.3, "erasing": 0.9}, {"randaugment_operations": 2}, {"three_augment": True}, {}]
)
def test_the_bytes_that_are_augmented_stay_as_they_are(settings):
    images = torch.randint(256, (6, 3, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    kept = images.clone()
    Augmenter(Augmentation(flip=0.5, **settings), 0, (0.5,) * 3, (0.5,) * 3, 4)(
        images, torch.zeros(6, dtype=torch.int64), keys_of(range(6))
    )
    assert torch.equal(images, kept)


class TestMixing:
    pixels = torch.stack([torch.full((3, 8, 8), float(i)) for i in range(7)])
    labels = torch.tensor([0, 1, 2, 3, 0, 1, 2])

    def mixed(self, **settings):
        return mix(self.pixels, self.labels, 4, Augmentation(**settings), 0, keys_of(range(7)))

    def test_mixup_mixes_pixels_and_labels_by_the_same_share(self):
        pixels, targets = self.mixed(mixup=0.8)
        for j in (0, 2, 4):
            share = targets[j, self.labels[j]]
            torch.testing.assert_close(pixels[j], share * self.pixels[j] + (1 - share) * self.pixels[j + 1])
            torch.testing.assert_close(pixels[j + 1], share * self.pixels[j + 1] + (1 - share) * self.pixels[j])
        assert targets.sum(1).allclose(torch.ones(7))

    def test_cutmix_counts_the_pixels_that_it_kept(self):
        pixels, targets = self.mixed(cutmix=1.0)
        for j in range(6):
            kept = (pixels[j] == self.pixels[j]).float().mean()
            torch.testing.assert_close(targets[j, self.labels[j]], kept)
            assert set(pixels[j].unique().tolist()) <= {float(j), float(j ^ 1)}

    def test_an_odd_image_is_left_alone(self):
        pixels, targets = self.mixed(mixup=0.8, cutmix=1.0)
        assert pixels[6].equal(self.pixels[6])
        assert targets[6].tolist() == [0, 0, 1, 0]

    def test_labels_that_are_present(self):
        _, targets = self.mixed(mixup=0.8, mixed_labels="present")
        assert targets[0].tolist() == [1, 1, 0, 0]

    def test_a_share_of_the_pairs_is_left_alone(self):
        keys = keys_of(range(2000))
        pixels = torch.rand(2000, 1, 2, 2)
        mixed, _ = mix(pixels, torch.zeros(2000).long(), 4, Augmentation(mixup=0.8, mix_probability=0.3), 0, keys)
        changed = (mixed != pixels).flatten(1).any(1).float().mean()
        assert changed == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0, 3.0, 20.0, 1000.0])
def test_shares_follow_the_beta_distribution(alpha):
    drawn = symmetric_beta((torch.arange(200_000) + 0.5) / 200_000, alpha)
    assert drawn.mean() == pytest.approx(0.5, abs=1e-3)
    assert drawn.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=3e-3)
