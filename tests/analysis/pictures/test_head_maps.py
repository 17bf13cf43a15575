"""Heat maps of heads: what is written at each panel."""

from dataclasses import replace

import pytest
from PIL import Image

from qkvit.analysis import weight_statistics
from qkvit.analysis.pictures.head_maps import HEAD_PANELS, WEIGHT_PANELS, draw_head_maps, draw_weight_maps


def words(figure):
    """Of all panels."""
    return [text.get_text() for axes in figure.axes for text in axes.texts]


def below(figure):
    return [axes.get_xlabel() for axes in figure.axes if axes.get_label() != "<colorbar>"]


def test_weights_are_drawn(tmp_path, tiny_model):
    draw_weight_maps(weight_statistics(tiny_model()), tmp_path / "weights.png", title="Weights: tiny")
    with Image.open(tmp_path / "weights.png") as picture:
        assert picture.size[0] > 500


def test_beside_every_panel_stands_what_random_weights_give(tmp_path, tiny_model, collected_from, figures):
    draw_weight_maps(weight_statistics(tiny_model()), tmp_path / "weights.png", title="Weights: tiny")
    collected = replace(collected_from(range(3), 2), control=collected_from(range(3), 2, value=0.25))
    draw_head_maps(collected, tmp_path / "heads.png", title="Every head: tiny")
    weights, heads = ([text for text in below(figure) if text] for figure in figures)
    assert len(weights) == len(WEIGHT_PANELS)
    assert all(text.startswith("head · mean of random: ") for text in weights)
    assert heads == ["head · mean of random: 0.25"] * len(HEAD_PANELS)


def test_random_weights_have_the_colours_of_the_panel_beside_them(tmp_path, collected_from, figures):
    """One cell a layer, the mean of its heads; and a scale that holds both."""
    collected = replace(collected_from(range(3), 2, value=5.0), control=collected_from(range(3), 2, value=0.25))
    draw_head_maps(collected, tmp_path / "heads.png", title="Every head: tiny")
    maps = [axes.images[0] for axes in figures[0].axes if axes.images]
    panels, strips = maps[0::2], maps[1::2]
    assert len(panels) == len(strips) == len(HEAD_PANELS)
    for panel, strip in zip(panels, strips, strict=True):
        assert strip.get_array().shape == (panel.get_array().shape[0], 1)
        assert set(strip.get_array().flatten()) == {0.25}
        assert strip.norm.vmin <= 0.25
        assert strip.norm.vmax >= 5.0
        assert (strip.norm.vmin, strip.norm.vmax) == (panel.norm.vmin, panel.norm.vmax)


@pytest.mark.parametrize(("value", "said"), [(0.0, "nats"), (5.0, "nats, from 4.5, not 0")])
def test_a_scale_that_does_not_begin_at_zero_says_so(tmp_path, collected_from, figures, value, said):
    draw_head_maps(collected_from(range(3), 2, value=value), tmp_path / "heads.png", title="Every head: tiny")
    assert words(figures[0])[0] == said
