"""Queries, keys and values are drawn for every layout, and what is written beside them can be read."""

from PIL import Image

from qkvit.analysis.pictures.qkv import draw_qkv, token_names


def test_a_picture_of_queries_keys_and_values_is_written(layout, tensors, tmp_path):
    images, query, key, value, weights = (tensor[0] for tensor in tensors(layout))
    path = tmp_path / "qkv.png"
    draw_qkv(images, query, key, value, weights, layout, path, title="Layer 0", provenance="a test")
    with Image.open(path) as picture:
        assert picture.info["Description"] == "a test"
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100


def test_every_token_has_a_name_of_its_own(layout):
    names = token_names(layout)
    assert len(names) == len(set(names)) == layout.num_tokens
