"""What is cut out of an image is the same picture whether it was decoded whole or smaller."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from qkvit.data import decode_image
from qkvit.training.augmentation.crops import Crop, draw_crops, resize, to_tensor
from qkvit.training.recipe import Augmentation


def smooth(size, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def jpeg(size, orientation=None):
    file, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[274] = orientation
    smooth(size).save(file, "jpeg", quality=95, exif=exif)
    return file.getvalue()


@given(st.tuples(st.integers(1, 90), st.integers(1, 90)), st.tuples(st.integers(1, 70), st.integers(1, 70)))
def test_resizing_is_that_of_pil(source, target):
    image = smooth(source)
    ours = resize(to_tensor(image), target).permute(1, 2, 0).numpy().astype(int)
    theirs = np.asarray(image.resize(target[::-1], Image.Resampling.BICUBIC)).astype(int)
    difference = np.abs(ours - theirs)
    assert np.quantile(difference, 0.9) <= 1  # where a value overshoots, the two clip it in another order
    assert difference.mean() < 0.5


@pytest.mark.parametrize("crop", ["resized", "simple", "none"])
@pytest.mark.parametrize("orientation", [None, 3, 6])
def test_a_large_image_is_decoded_smaller_and_gives_the_same_crop(crop, orientation):
    file = jpeg((1200, 900), orientation)
    keys = torch.tensor([[0, index, 0] for index in range(6)])
    settings = Augmentation(crop=crop, crop_scale=(0.3, 1.0))
    for whole, reduced in zip(*(draw_crops((24, 32), settings, 1, keys) for _ in range(2)), strict=True):
        image, small = decode_image(file), decode_image(file, reduce=reduced)
        assert small.width * 2 <= image.width
        assert (small.width > small.height) == (image.width > image.height)
        difference = (whole.cut(image).int() - reduced.cut(small).int()).abs().float()
        assert difference.mean() < 4  # cut at whole pixels of the smaller image


def test_no_more_is_left_out_than_what_leaves_some_to_spare():
    reduced = decode_image(jpeg((400, 300)), reduce=Crop((24, 32), Augmentation(), []))
    assert reduced.size == (100, 75)  # 400 / 32 = 12.5: at 1/4 it is still more than twice as large
    assert decode_image(jpeg((100, 80)), reduce=Crop((24, 32), Augmentation(), [])).size == (100, 80)
    assert decode_image(jpeg((24, 32)), reduce=Crop((24, 32), Augmentation(), [])).size == (24, 32)


def test_other_formats_are_decoded_whole():
    file = io.BytesIO()
    smooth((400, 300)).save(file, "png")
    assert decode_image(file.getvalue(), reduce=lambda size: 8.0).size == (400, 300)


@given(
    st.tuples(st.integers(1, 400), st.integers(1, 400)).filter(lambda size: max(size) < 100 * min(size)),
    st.integers(0, 10_000),
    st.sampled_from(["resized", "simple", "none"]),
)
def test_any_size_can_be_cut_also_decoded_smaller(size, index, crop):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "jpeg")
    (drawn,) = draw_crops((5, 7), Augmentation(crop=crop), 0, torch.tensor([[0, index, 0]]))
    assert drawn.cut(decode_image(file.getvalue(), reduce=drawn)).shape == (3, 5, 7)
