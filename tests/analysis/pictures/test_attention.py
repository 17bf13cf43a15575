"""Where heads look is drawn for every layout, on a grid of any shape."""

import pytest
import torch
from PIL import Image

from qkvit.analysis import TokenLayout
from qkvit.analysis.pictures.attention import draw_attention, looked_at


def test_a_picture_of_attention_is_written(layout, tensors, tmp_path):
    images, *_, weights = tensors(layout)
    path = tmp_path / "attention.png"
    draw_attention(images, weights, layout, path, title="Layer 0", row_names=["a", "b"], provenance="a test")
    with Image.open(path) as picture:
        assert picture.info["Description"] == "a test"
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100


def test_an_image_in_colours_is_shown_in_them(layout, tensors, figures, tmp_path):
    images, *_, weights = tensors(layout, batch=1)
    colours = images[:, None].repeat(1, 3, 1, 1)
    colours[:, 0] = 1.5  # a little beyond white, as what comes of rounding is
    draw_attention(colours, weights, layout, tmp_path / "a.png", title="", row_names=["a"])
    shown = figures[0].axes[0].images[0].get_array()
    assert torch.equal(torch.tensor(shown), colours[0].clamp(max=1).movedim(0, -1))
    over_it = figures[0].axes[1].images[1].get_array()
    assert 0 <= over_it[..., 3].min() < over_it[..., 3].max() <= 0.5


def test_the_class_token_is_the_one_that_looks():
    layout = TokenLayout(grid=(2, 2), has_class_token=True)
    weights = torch.rand(1, 1, 5, 5)
    assert looked_at(weights, layout).equal(weights[..., 0, :])


def test_without_a_class_token_it_is_the_mean_of_the_patches():
    layout = TokenLayout(grid=(2, 2), num_register_tokens=1)
    weights = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(looked_at(weights, layout), weights[..., 1:, :].mean(dim=-2))


def test_as_many_images_as_maps_and_names_are_needed(layout, tensors, tmp_path):
    images, *_, weights = tensors(layout)
    with pytest.raises(ValueError, match="2 images, 2 maps and 1 names"):
        draw_attention(images, weights, layout, tmp_path / "a.png", title="", row_names=["a"])
