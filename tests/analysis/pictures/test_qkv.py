"""Queries, keys and values are drawn for every layout, and what is written beside them can be read."""

import itertools

import pytest
from PIL import Image

from qkvit.analysis import TokenLayout
from qkvit.analysis.pictures.qkv import draw_qkv, token_names


def test_a_picture_of_queries_keys_and_values_is_written(layout, tensors, tmp_path):
    images, query, key, value, weights = (tensor[0] for tensor in tensors(layout))
    path = tmp_path / "qkv.png"
    draw_qkv(images, query, key, value, weights, layout, path, title="Layer 0", provenance="a test")
    with Image.open(path) as picture:
        assert picture.info["Description"] == "a test"
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100


def test_an_image_in_colours_is_shown_in_them(layout, tensors, figures, tmp_path):
    image, query, key, value, weights = (tensor[0] for tensor in tensors(layout))
    colours = image.repeat(3, 1, 1)
    draw_qkv(colours, query, key, value, weights, layout, tmp_path / "qkv.png", title="Layer 0")
    assert figures[0].axes[0].images[0].get_array().shape == (*image.shape, 3)


@pytest.mark.parametrize("heads", [8, 9, 25])
def test_many_heads_stand_in_blocks_beside_each_other(tensors, figures, tmp_path, heads):
    layout = TokenLayout(grid=(2, 2))
    images, query, key, value, weights = (tensor[0] for tensor in tensors(layout, heads=heads))
    draw_qkv(images, query, key, value, weights, layout, tmp_path / "qkv.png", title="Layer 0")
    (figure,) = figures
    assert figure.get_figheight() < 20
    assert figure.get_figwidth() < 45
    rows = [axes for axes in figure.axes if axes.get_ylabel().startswith("head ")]
    assert [axes.get_ylabel() for axes in rows] == [f"head {head}" for head in range(heads)]
    shown = [panel.images[0] for panel in figure.axes if panel.images and panel.axison]
    of_heads = shown[1 : 1 + 4 * heads]  # after the image; colour bars have no image
    assert len({it.norm.vmax for it in of_heads}) == 4  # queries, keys, values and maps have one scale each


def test_every_token_has_a_name_of_its_own(layout):
    names = token_names(layout)
    assert len(names) == len(set(names)) == layout.num_tokens


@pytest.mark.parametrize("size", [1e-6, 0.001, 0.3, 300, 12345])
def test_the_numbers_of_a_colour_bar_stand_apart(size, tensors, figures, tmp_path):
    layout = TokenLayout(grid=(2, 2))
    images, query, key, value, weights = (tensor[0] for tensor in tensors(layout))
    vectors = (size * query, size * key, size * value)
    draw_qkv(images, *vectors, weights, layout, tmp_path / "qkv.png", title="Layer 0")
    (figure,) = figures
    figure.draw_without_rendering()
    bars = [axes for axes in figure.axes if axes.collections]
    assert len(bars) == 4
    for bar in bars:
        low, high = bar.get_xlim()  # matplotlib has ticks beyond these too, and does not draw them
        shown = zip(bar.get_xticks(), bar.get_xticklabels(), strict=True)
        places = [label.get_window_extent() for tick, label in shown if low <= tick <= high]
        assert len(places) >= 3
        assert all(right.x0 - left.x1 > 8 for left, right in itertools.pairwise(places))  # pixels, at 100 an inch
