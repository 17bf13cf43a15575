"""Where attention goes: what the colours and their bar say."""

import pytest
import torch

from qkvit import QKViTModel
from qkvit.analysis import collect
from qkvit.analysis.pictures import places


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(maps, layers)`: the figure of maps (L, N) of a model of so many layers."""

    def draw(tiny_model, pixels, layers, change=lambda maps: maps):
        figures = []
        found = collect(tiny_model(QKViTModel, num_hidden_layers=layers), [pixels], show_progress=False)
        monkeypatch.setattr(places, "save", lambda figure, *_: figures.append(figure))
        monkeypatch.setattr(places, "_received", lambda collected: change(collected.map("received")))
        places.draw_places(found, "places.png", title="Where attention goes: tiny")
        (figure,) = figures
        figure.canvas.draw()
        return figure

    return draw


@pytest.mark.parametrize("layers", [1, 6, 7])
def test_the_label_of_the_colours_is_in_the_picture(drawn, tiny_model, pixels, layers):
    figure = drawn(tiny_model, pixels, layers)
    label = figure.axes[-1].yaxis.label.get_window_extent()
    assert 0 < label.y0 < label.y1 < figure.bbox.height
    assert label.x1 < figure.bbox.width


def test_a_patch_that_draws_nothing_is_the_darkest(drawn, tiny_model, pixels):
    def one_of_nothing(maps):
        maps = torch.ones_like(maps)
        maps[:, -1] = 0
        return maps

    (image,) = drawn(tiny_model, pixels, 1, one_of_nothing).axes[0].images
    colours = image.to_rgba(image.get_array())
    assert tuple(colours[-1, -1]) == image.cmap(0.0)
    assert tuple(colours[0, 0]) != image.cmap(0.0)
