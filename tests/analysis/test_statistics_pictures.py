"""The pictures are drawn for every size of model, with what there is; their scales hold what they show."""

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from qkvit.analysis import TokenLayout, weight_statistics
from qkvit.analysis.collected import Collected
from qkvit.analysis.tally import Batch, Tally

pytest.importorskip("matplotlib")

from qkvit.analysis.statistics_pictures import (
    HEAD_PANELS,
    draw_all,
    draw_distance,
    draw_sinks,
    draw_weight_maps,
    mean_distance,
)


def collected_from(layers, heads, grid=(4, 6), prefix=1, without=(), value=None):
    """Random statistics of a model of any size."""
    generator = torch.Generator().manual_seed(0)
    tally = Tally()
    for number in range(2):
        batch = Batch(number, (*grid, prefix))
        for layer in layers:
            for panel in HEAD_PANELS:
                if panel.statistic not in without:
                    drawn = torch.rand(3, heads, generator=generator)
                    batch.values[panel.statistic, layer] = drawn if value is None else torch.full_like(drawn, value)
            for name in ("outliers", "token_norm_ratio"):
                batch.values[name, layer] = 1 + torch.rand(3, generator=generator)
            size = grid[0] * grid[1]
            batch.add_map("received", layer, torch.rand(3, prefix + size, generator=generator))
        tally.add(batch, None)
    return Collected.from_tally(tally, None)


def size_of(path):
    with Image.open(path) as picture:
        picture.load()
        return picture.size


@pytest.mark.parametrize(("layers", "heads"), [(range(40), 16), (range(1), 1)])
def test_every_size_of_model_is_drawn(tmp_path, layers, heads):
    paths = draw_all(collected_from(layers, heads), tmp_path, model="tiny", provenance="a test")
    assert [path.name for path in paths] == ["heads.png", "distance.png", "sinks.png", "places.png"]
    for path in paths:
        assert max(size_of(path)) < 4000
        with Image.open(path) as picture:
            assert picture.info["Description"] == "a test"


def test_random_weights_have_a_line_in_every_picture_over_depth(tmp_path, monkeypatch):
    drawn = []
    figure = pytest.importorskip("matplotlib.figure").Figure
    monkeypatch.setattr(figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    plain = collected_from(range(3), 2)
    for collected in (plain, replace(plain, control=collected_from(range(3), 2, value=0.25))):
        draw_distance(collected, tmp_path / "a.png", title="a")
        draw_sinks(collected, tmp_path / "b.png", title="b")
    flat = [[line for line in each.axes[0].lines if set(line.get_ydata()) == {0.25}] for each in drawn]
    assert [len(lines) for lines in flat] == [0, 0, 1, 3]
    for each in drawn[2:]:
        assert "random weights" in [text.get_text() for text in each.axes[0].get_legend().get_texts()]
    assert [len(axes.lines) for axes in drawn[3].axes[1:]] == [2, 2]


@pytest.mark.parametrize("value", [0.0, math.nan])
def test_numbers_that_are_all_alike_or_missing(tmp_path, value):
    draw_all(collected_from(range(3), 2, value=value), tmp_path, model="tiny")


def test_only_what_was_collected_is_drawn(tmp_path):
    without = {"distance", "on_class_token", "on_registers", "on_outliers", "largest_received"}
    paths = draw_all(collected_from(range(3), 2, without=without), tmp_path, model="tiny")
    assert [path.name for path in paths] == ["heads.png"]


def test_weights_are_drawn(tmp_path, tiny_model):
    draw_weight_maps(weight_statistics(tiny_model()), tmp_path / "weights.png", title="Weights: tiny")
    assert size_of(tmp_path / "weights.png")[0] > 500


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 6), (7, 3)])
def test_mean_distance_of_equal_weights(grid):
    assert math.isclose(mean_distance(grid), TokenLayout(grid=grid).distances().mean().item(), abs_tol=1e-12)
