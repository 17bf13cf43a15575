"""Pictures are drawn for every layout, on a grid of any shape, without touching matplotlib's global state."""

import subprocess
import sys

import pytest
import torch
from PIL import Image

from qkvit.analysis.attention_pictures import draw_attention, looked_at
from qkvit.analysis.qkv_pictures import draw_qkv, token_names
from qkvit.analysis.token_layout import TokenLayout

LAYOUTS = [
    TokenLayout(grid=(4, 4), has_class_token=True),
    TokenLayout(grid=(2, 5)),
    TokenLayout(grid=(3, 2), has_class_token=True, has_distillation_token=True, num_register_tokens=2),
    TokenLayout(grid=(3, 3), num_prefix_tokens=1),
]


def tensors(layout, batch=2, heads=3, width=8):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 8 * layout.grid[0], 8 * layout.grid[1], generator=generator)
    query, key, value = torch.randn(3, batch, heads, layout.num_tokens, width, generator=generator)
    return images, query, key, value, (query @ key.mT).softmax(dim=-1)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_of_attention_is_written(layout, tmp_path):
    images, *_, weights = tensors(layout)
    path = tmp_path / "attention.png"
    draw_attention(images, weights, layout, path, title="Layer 0", row_names=["a", "b"], provenance="a test")
    with Image.open(path) as picture:
        assert picture.info["Description"] == "a test"
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_picture_of_queries_keys_and_values_is_written(layout, tmp_path):
    images, query, key, value, weights = (tensor[0] for tensor in tensors(layout))
    path = tmp_path / "qkv.png"
    draw_qkv(images, query, key, value, weights, layout, path, title="Layer 0", provenance="a test")
    with Image.open(path) as picture:
        assert picture.info["Description"] == "a test"
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 100


def test_the_class_token_is_the_one_that_looks():
    layout = TokenLayout(grid=(2, 2), has_class_token=True)
    weights = torch.rand(1, 1, 5, 5)
    assert looked_at(weights, layout).equal(weights[..., 0, :])


def test_without_a_class_token_it_is_the_mean_of_the_patches():
    layout = TokenLayout(grid=(2, 2), num_register_tokens=1)
    weights = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(looked_at(weights, layout), weights[..., 1:, :].mean(dim=-2))


def test_every_token_has_a_name_of_its_own():
    for layout in LAYOUTS:
        names = token_names(layout)
        assert len(names) == len(set(names)) == layout.num_tokens


def test_as_many_images_as_maps_and_names_are_needed(tmp_path):
    layout = LAYOUTS[0]
    images, *_, weights = tensors(layout)
    with pytest.raises(ValueError, match="2 images, 2 maps and 1 names"):
        draw_attention(images, weights, layout, tmp_path / "a.png", title="", row_names=["a"])


def test_importing_the_pictures_does_not_import_matplotlib():
    modules = "qkvit.analysis.attention_pictures, qkvit.analysis.qkv_pictures"
    code = f"import sys, {modules}; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
