"""The pictures of a data set are drawn for every size of model, with what there is."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from qkvit.analysis.pictures import draw_all, draw_places, draw_rollout


@pytest.mark.parametrize(("layers", "heads"), [(range(40), 16), (range(1), 1)])
def test_every_size_of_model_is_drawn(tmp_path, collected_from, layers, heads):
    paths = draw_all(collected_from(layers, heads), tmp_path, model="tiny", provenance="a test")
    names = ["heads.png", "distance.png", "sinks.png", "places.png", "rollout.png"]
    assert [path.name for path in paths] == names
    for path in paths:
        with Image.open(path) as picture:
            assert max(picture.size) < 4000
            assert picture.info["Description"] == "a test"


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_numbers_that_are_all_alike_or_missing(tmp_path, collected_from, value):
    draw_all(collected_from(range(3), 2, value=value), tmp_path, model="tiny")


def test_only_what_was_collected_is_drawn(tmp_path, collected_from):
    without = {"distance", "on_class_token", "on_registers", "on_outliers", "largest_received"}
    paths = draw_all(collected_from(range(3), 2, without=without), tmp_path, model="tiny")
    assert [path.name for path in paths] == ["heads.png", "rollout.png"]


def test_a_rollout_is_shown_beside_that_of_the_average_patch(tmp_path, collected_from, figures):
    collected = collected_from(range(2), 2)
    draw_rollout(collected, tmp_path / "rollout.png", title="Rollout: tiny")
    panels = [panel for panel in figures[0].axes if panel.images]
    shares = collected.map("rollout")[0, 1:]
    expected = (shares / shares.mean()).unflatten(0, (4, 6))
    torch.testing.assert_close(torch.from_numpy(panels[0].images[0].get_array().data), expected)


@pytest.mark.parametrize("draw", [draw_places, draw_rollout])
def test_random_weights_stand_below_each_layer(tmp_path, collected_from, figures, draw):
    """Of the same layer, with the same colours for the same number."""
    control = collected_from(range(3), 1)
    draw(replace(collected_from(range(3), 2), control=control), tmp_path / "picture.png", title="Where: tiny")
    panels = {panel.get_title(): panel for panel in figures[0].axes if panel.images}
    assert len(panels) == 6
    draw(control, tmp_path / "picture.png", title="Where: random")
    of_control = [panel for panel in figures[1].axes if panel.images]
    for layer, expected in enumerate(of_control):
        trained, random = panels[f"layer {layer}"], panels[f"layer {layer}, random"]
        assert random.images[0].norm is trained.images[0].norm
        assert (random.images[0].get_array() == expected.images[0].get_array()).all()
        assert random.get_position().x0 == trained.get_position().x0
        assert random.get_position().y1 < trained.get_position().y0
