"""Curves over depth: random weights have a line in them, and equal weights are where they belong."""

import math
from dataclasses import replace

import pytest

from qkvit.analysis import TokenLayout
from qkvit.analysis.pictures.depth_curves import draw_distance, draw_sinks, mean_distance


def test_random_weights_have_a_line_in_every_picture_over_depth(tmp_path, collected_from, figures):
    plain = collected_from(range(3), 2)
    for collected in (plain, replace(plain, control=collected_from(range(3), 2, value=0.25))):
        draw_distance(collected, tmp_path / "a.png", title="a")
        draw_sinks(collected, tmp_path / "b.png", title="b")
    flat = [[line for line in each.axes[0].lines if set(line.get_ydata()) == {0.25}] for each in figures]
    assert [len(lines) for lines in flat] == [0, 0, 1, 3]
    for each in figures[2:]:
        assert "random weights" in [text.get_text() for text in each.axes[0].get_legend().get_texts()]
    assert [len(axes.lines) for axes in figures[3].axes[1:]] == [2, 2]


def test_a_distance_in_patches_that_are_not_square_has_no_axis_in_the_image(tmp_path, collected_from, figures):
    for without in ((), ("distance_fraction",)):
        draw_distance(collected_from(range(3), 2, without=without), tmp_path / "a.png", title="a")
    assert [len(each.axes[0].child_axes) for each in figures] == [1, 0]


@pytest.mark.filterwarnings("error")
def test_one_patch_has_a_picture_too(tmp_path, collected_from):
    draw_distance(collected_from(range(3), 2, grid=(1, 1), value=0.0), tmp_path / "a.png", title="a")


@pytest.mark.parametrize("grid", [(1, 1), (1, 5), (4, 6), (7, 3)])
def test_mean_distance_of_equal_weights(grid):
    assert math.isclose(mean_distance(grid), TokenLayout(grid=grid).distances().mean().item(), abs_tol=1e-12)
