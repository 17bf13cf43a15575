"""Heat maps of heads."""

from PIL import Image

from qkvit.analysis import weight_statistics
from qkvit.analysis.pictures.head_maps import draw_weight_maps


def test_weights_are_drawn(tmp_path, tiny_model):
    draw_weight_maps(weight_statistics(tiny_model()), tmp_path / "weights.png", title="Weights: tiny")
    with Image.open(tmp_path / "weights.png") as picture:
        assert picture.size[0] > 500
