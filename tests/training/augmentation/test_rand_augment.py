"""RandAugment: the tables of three programs, value by value; nothing but the image's key decides."""

import math

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from qkvit.training.augmentation import operations as op
from qkvit.training.augmentation.pipeline import Augmenter
from qkvit.training.augmentation.rand_augment import BIG_VISION, STANDARD, TABLES, TIMM, Table, rand_augment
from qkvit.training.recipe import Augmentation

SHARED = "auto_contrast equalise rotate solarise colour posterise contrast brightness sharpness"
MOVES = "shear_x shear_y shift_x shift_y"
NAMES = {
    "standard": f"identity {SHARED} {MOVES}",
    "timm": f"invert solarise_add {SHARED} {MOVES}",
    "big_vision": f"invert solarise_add cut_out {SHARED} {MOVES}",
}
FACTORS = ("colour", "contrast", "brightness", "sharpness")

# What is made of m and a sign, in the units of the programs.
FORMULAS = {
    "standard": {
        "rotate": lambda m, sign: sign * 30 * m / 10,
        "shear_x": lambda m, sign: sign * 0.3 * m / 10,
        "shear_y": lambda m, sign: sign * 0.3 * m / 10,
        "shift_x": lambda m, sign: sign * 0.45 * m / 10,
        "shift_y": lambda m, sign: sign * 0.45 * m / 10,
        "solarise": lambda m, sign: 255 - 25.5 * m,
        "posterise": lambda m, sign: 8 - 0.4 * m,
        **{name: lambda m, sign: 1 + sign * 0.9 * m / 10 for name in FACTORS},
    },
    "timm": {
        "rotate": lambda m, sign: sign * 30 * m / 10,
        "shear_x": lambda m, sign: sign * 0.3 * m / 10,
        "shear_y": lambda m, sign: sign * 0.3 * m / 10,
        "shift_x": lambda m, sign: sign * 0.45 * m / 10,
        "shift_y": lambda m, sign: sign * 0.45 * m / 10,
        "solarise": lambda m, sign: 256 - int(m / 10 * 256),
        "solarise_add": lambda m, sign: min(128, int(m / 10 * 110)),
        "posterise": lambda m, sign: 4 - int(m / 10 * 4),
        **{name: lambda m, sign: max(0.1, 1 + sign * 0.9 * m / 10) for name in FACTORS},
    },
    "big_vision": {
        "rotate": lambda m, sign: sign * 30 * m / 10,
        "shear_x": lambda m, sign: sign * 0.3 * m / 10,
        "shear_y": lambda m, sign: sign * 0.3 * m / 10,
        "shift_x": lambda m, sign: sign * 100 * m / 10,
        "shift_y": lambda m, sign: sign * 100 * m / 10,
        "solarise": lambda m, sign: int(np.array(int(m / 10 * 256)).astype(np.uint8)),
        "solarise_add": lambda m, sign: int(m / 10 * 110),
        "posterise": lambda m, sign: int(m / 10 * 4),
        "cut_out": lambda m, sign: int(m / 10 * 40),
        **{name: lambda m, sign: m / 10 * 1.8 + 0.1 for name in FACTORS},
    },
}
OF_255 = ("solarise", "solarise_add")


def keys_of(count, epoch=0):
    return torch.tensor([[epoch, index, 0] for index in range(count)])


@pytest.fixture
def images():
    return torch.rand(60, 3, 14, 12, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def picture():
    """Smooth enough that two bicubic kernels agree, 96 by 81."""
    random = np.random.default_rng(0)
    noise = Image.fromarray(random.integers(0, 256, (10, 12, 3)).astype(np.uint8))
    return noise.resize((96, 81), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def as_tensor(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).unsqueeze(0).float() / 255


def changed(table, name, image, m, drawn=(0.9, 0.5)):
    """By an operation at a magnitude; the sign is positive unless the first number is below one half."""
    operation, amount = table.operations[name]
    return operation(as_tensor(image), amount(torch.tensor([m / 10]), torch.tensor([drawn])))


@pytest.mark.parametrize("name", TABLES)
def test_the_operations_of_a_table(name):
    assert sorted(TABLES[name].operations) == sorted(NAMES[name].split())
    assert TABLES[name].probability == (0.5 if name == "timm" else 1.0)


@pytest.mark.parametrize("m", [0, 0.5, 1, 2.5, 3, 5, 6, 7, 8.9, 9, 9.3, 10])
@pytest.mark.parametrize("table", TABLES)
def test_what_is_made_of_a_magnitude(table, m):
    for name, formula in FORMULAS[table].items():
        for number, sign in ((0.1, -1), (0.7, 1)):
            amount = TABLES[table].operations[name][1](torch.tensor([m / 10]), torch.tensor([[number, 0.25]]))
            unit = 255 if name in OF_255 else 1
            assert amount.flatten()[0].item() * unit == pytest.approx(formula(m, sign), abs=1e-4), (name, sign)


class TestOperations:
    images = torch.rand(6, 3, 14, 18, generator=torch.Generator().manual_seed(0))
    drawn = torch.tensor([[0.9, 0.3], [0.1, 0.8]] * 3)

    @pytest.mark.parametrize(
        ("table", "name"), [(table, name) for table in TABLES for name in TABLES[table].operations]
    )
    def test_images_stay_images(self, table, name):
        operation, amount = TABLES[table].operations[name]
        for strength in (0.0, 0.5, 1.0):
            after = operation(self.images.clone(), amount(torch.full((6,), strength), self.drawn))
            assert after.shape == self.images.shape
            assert after.min() >= -1e-5
            assert after.max() <= 1 + 1e-5

    @pytest.mark.parametrize("name", sorted(STANDARD.operations.keys() - {"auto_contrast", "equalise", "posterise"}))
    def test_no_strength_no_change(self, name):
        operation, amount = STANDARD.operations[name]
        after = operation(self.images, amount(torch.zeros(6), self.drawn))
        torch.testing.assert_close(after, self.images, atol=1e-5, rtol=0)

    @pytest.mark.parametrize("table", [TIMM, BIG_VISION])
    @pytest.mark.parametrize("name", ["rotate", *MOVES.split()])
    def test_what_is_not_moved_is_not_resampled(self, table, name):
        operation, amount = table.operations[name]
        after = operation(self.images, amount(torch.zeros(6), self.drawn))
        torch.testing.assert_close(after, self.images, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("name", "m", "reference"),
    [
        ("auto_contrast", 9, ImageOps.autocontrast),
        ("equalise", 9, ImageOps.equalize),
        ("invert", 9, ImageOps.invert),
        ("posterise", 9, lambda image: ImageOps.posterize(image, 1)),
        ("posterise", 10, lambda image: Image.new("RGB", image.size)),
        ("solarise", 9, lambda image: ImageOps.solarize(image, 26)),
        ("solarise_add", 9, lambda image: image.point([v + 99 if v < 128 else v for v in range(256)] * 3)),
        ("colour", 9, lambda image: ImageEnhance.Color(image).enhance(1.81)),
        ("contrast", 9, lambda image: ImageEnhance.Contrast(image).enhance(1.81)),
        ("brightness", 9, lambda image: ImageEnhance.Brightness(image).enhance(1.81)),
        ("sharpness", 9, lambda image: ImageEnhance.Sharpness(image).enhance(1.81)),
    ],
)
def test_the_colours_of_timm_are_those_of_pillow(picture, name, m, reference):
    torch.testing.assert_close(changed(TIMM, name, picture, m), as_tensor(reference(picture)), atol=2.6 / 255, rtol=0)


@pytest.mark.parametrize("m", [4, 9])
@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("rotate", None),
        ("shear_x", lambda m, width, height: (1, 0.03 * m, 0, 0, 1, 0)),
        ("shear_y", lambda m, width, height: (1, 0, 0, 0.03 * m, 1, 0)),
        ("shift_x", lambda m, width, height: (1, 0, 0.045 * m * width, 0, 1, 0)),
        ("shift_y", lambda m, width, height: (1, 0, 0, 0, 1, 0.045 * m * height)),
    ],
)
def test_the_places_of_timm_are_those_of_pillow(picture, name, matrix, m):
    """But for a pixel beside the outside, where Pillow does not fade, and for the kernels."""
    how = {"resample": Image.Resampling.BICUBIC, "fillcolor": (124, 116, 104)}
    if name == "rotate":
        expected = picture.rotate(3 * m, **how)
    else:
        expected = picture.transform(picture.size, Image.Transform.AFFINE, matrix(m, *picture.size), **how)
    difference = (changed(TIMM, name, picture, m) - as_tensor(expected)).abs()
    assert difference.median() < 1.5 / 255
    assert (difference > 4 / 255).float().mean() < 0.04
    assert (as_tensor(picture) - as_tensor(expected)).abs().median() > 10 / 255, "it can fail"


def nearest(picture, places):
    """An image of the nearest pixels of the places (x, y) that a function gives for each x and y, 128 outside."""
    source = np.array(picture)
    height, width = source.shape[:2]
    result = np.full_like(source, 128)
    for y in range(height):
        for x in range(width):
            column, row = (math.floor(place + 0.5) for place in places(x, y))
            if 0 <= column < width and 0 <= row < height:
                result[y, x] = source[row, column]
    return result


@pytest.mark.parametrize("m", [1, 2.5, 10])
@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("shear_x", lambda m, x, y: (x + 0.03 * m * (y + 0.5), y)),
        ("shear_y", lambda m, x, y: (x, y + 0.03 * m * (x + 0.5))),
        ("shift_x", lambda m, x, y: (x + 10 * m, y)),
        ("shift_y", lambda m, x, y: (x, y + 10 * m)),
    ],
)
def test_the_places_of_big_vision_are_whole_pixels(picture, name, places, m):
    expected = nearest(picture, lambda x, y: places(m, x, y))
    same = (changed(BIG_VISION, name, picture, m) - as_tensor(expected)).abs() < 1e-5
    assert same.float().mean() > (0.999 if name.startswith("shift") else 0.98)  # halves may be rounded either way


def test_a_rotation_of_big_vision_keeps_pixels_whole(picture):
    cosine, sine = math.cos(math.pi / 6), math.sin(math.pi / 6)
    middle_x, middle_y = (picture.width - 1) / 2, (picture.height - 1) / 2

    def places(x, y):
        x, y = x - middle_x, y - middle_y
        return cosine * x - sine * y + middle_x, sine * x + cosine * y + middle_y

    same = (changed(BIG_VISION, "rotate", picture, 10) - as_tensor(nearest(picture, places))).abs() < 1e-5
    assert same.float().mean() > 0.98


@pytest.mark.parametrize(
    ("name", "m", "reference"),
    [
        ("invert", 10, lambda v, grey: 255 - v),
        ("posterise", 10, lambda v, grey: v // 16 * 16),
        ("posterise", 5, lambda v, grey: v // 64 * 64),
        ("solarise", 10, lambda v, grey: 255 - v),
        ("solarise", 5, lambda v, grey: np.where(v < 128, v, 255 - v)),
        ("solarise_add", 10, lambda v, grey: np.where(v < 128, v + 110, v)),
        ("colour", 10, lambda v, grey: grey + 1.9 * (v - grey)),
        ("contrast", 10, lambda v, grey: 30 + 1.9 * (v - 30)),  # 96 * 81 / 256 = 30.4
        ("contrast", 2, lambda v, grey: 30 + 0.46 * (v - 30)),
        ("brightness", 10, lambda v, grey: 1.9 * v),
        ("brightness", 0, lambda v, grey: 0.1 * v),
    ],
)
def test_the_colours_of_big_vision_are_those_of_its_formulas(picture, name, m, reference):
    values = np.array(picture).astype(np.int64)
    expected = reference(values, values @ [[0.299], [0.587], [0.114]]).clip(0, 255)
    torch.testing.assert_close(changed(BIG_VISION, name, picture, m), as_tensor(expected), atol=1e-5, rtol=0)


@pytest.mark.parametrize("place", [(0.5, 0.5), (0.0, 0.99), (0.97, 0.0), (0.3, 0.8)])
@pytest.mark.parametrize("m", [0, 2, 3.1, 10])
def test_the_square_that_is_cut_out(picture, m, place):
    expected = np.array(picture)
    row, column, reach = int(place[0] * 81), int(place[1] * 96), int(m / 10 * 40)
    expected[max(0, row - reach) : row + reach, max(0, column - reach) : column + reach] = 128
    torch.testing.assert_close(changed(BIG_VISION, "cut_out", picture, m, place), as_tensor(expected))


def test_each_image_of_a_batch_is_cut_and_brightened_by_its_own_amount(images):
    centres, reach, added = torch.rand(60, 2), torch.arange(60.0) % 7, torch.arange(60.0) / 255
    cut, bright = op.cut_out(images, reach, centres, 0.25), op.solarise_add(images, added)
    for i in range(60):
        one = slice(i, i + 1)
        assert torch.equal(cut[one], op.cut_out(images[one], reach[one], centres[one], 0.25))
        assert torch.equal(bright[one], op.solarise_add(images[one], added[one]))


@pytest.mark.parametrize("table", TABLES)
def test_an_image_is_changed_the_same_in_every_batch_and_stays_an_image(images, table):
    settings = Augmentation(randaugment_operations=2, randaugment_spread=0.5, randaugment_table=table)
    whole = rand_augment(images.clone(), settings, 0, keys_of(60))
    assert whole.min() >= 0
    assert whole.max() <= 1
    for part in (slice(0, 7), slice(7, 60)):
        alone = rand_augment(images[part].clone(), settings, 0, keys_of(60)[part])
        torch.testing.assert_close(alone, whole[part], atol=1e-6, rtol=0)
    assert not torch.equal(whole, rand_augment(images.clone(), settings, 1, keys_of(60)))
    assert not torch.equal(whole, rand_augment(images.clone(), settings, 0, keys_of(60, epoch=1)))


@pytest.mark.parametrize(
    ("table", "magnitude", "share"),
    [
        ("standard", 9, (1 / 14) ** 2),  # twice the identity
        ("timm", 9, 0.5**2),
        ("big_vision", 10, (2 / 16) ** 2),  # inverted, and inverted again
    ],
)
def test_the_share_of_images_that_stay_as_they_are(table, magnitude, share):
    images = torch.rand(6000, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    settings = Augmentation(
        randaugment_operations=2, randaugment_magnitude=magnitude, randaugment_spread=0.0, randaugment_table=table
    )
    after = rand_augment(images.clone(), settings, 0, keys_of(6000))
    same = ((after - images).abs() < 1e-6).flatten(1).all(1).float().mean()
    assert same == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("table", TABLES)
def test_every_operation_is_drawn_as_often_and_at_the_magnitudes_that_were_asked_for(table, monkeypatch):
    """Each operation is replaced by one that counts; 20,000 images."""
    counts, strengths, signs = dict.fromkeys(TABLES[table].operations, 0), [], []

    def counting(name):
        def amount(strength, drawn):
            counts[name] += len(strength)
            strengths.append(strength)
            signs.append(drawn[:, 0] < 0.5)
            return strength

        return lambda images, amount: images, amount

    counters = Table({name: counting(name) for name in counts}, TABLES[table].probability)
    monkeypatch.setitem(TABLES, table, counters)
    settings = Augmentation(randaugment_operations=2, randaugment_spread=0.5, randaugment_table=table)
    rand_augment(torch.zeros(20_000, 1, 1, 1), settings, 0, keys_of(20_000))
    for name, count in counts.items():
        assert count / 20_000 == pytest.approx(2 * counters.probability / len(counts), abs=0.01), name
    drawn = torch.cat(strengths) * 10
    assert drawn.median() == pytest.approx(9, abs=0.02)
    assert drawn[drawn < 9].sub(9).square().mean().sqrt() == pytest.approx(0.5, abs=0.02)
    assert drawn.max() == 10
    assert (drawn == 10).float().mean() == pytest.approx(0.0228, abs=0.004), "beyond two standard deviations"
    assert torch.cat(signs).float().mean() == pytest.approx(0.5, abs=0.02)


def test_the_standard_table_is_what_it_was_when_recipes_were_measured():
    """Means of twelve images, kept from before there were other tables."""
    images = torch.rand(12, 3, 14, 12, generator=torch.Generator().manual_seed(0))
    keys = torch.tensor([[1, index, 0] for index in range(12)])
    settings = Augmentation(randaugment_operations=2, randaugment_spread=0.5)
    expected = [
        *(0.114952, 0.499350, 0.492868, 0.469810, 0.496798, 0.496624),
        *(0.489499, 0.466496, 0.109000, 0.480345, 0.507671, 0.511834),
    ]
    means = rand_augment(images, settings, 7, keys).mean((1, 2, 3))
    torch.testing.assert_close(means, torch.tensor(expected), atol=2e-6, rtol=0)


@pytest.mark.parametrize("table", TABLES)
def test_a_recipe_can_ask_for_a_table(images, table):
    settings = Augmentation(randaugment_operations=2, randaugment_table=table)
    bytes_ = (images * 255).round().to(torch.uint8)
    pixels, _ = Augmenter(settings, 0, (0.0,) * 3, (1.0,) * 3, 4)(bytes_, torch.zeros(60).long(), keys_of(60))
    torch.testing.assert_close(pixels, rand_augment(bytes_.float() / 255, settings, 0, keys_of(60)))
