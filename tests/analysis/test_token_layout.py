"""The layout says what each token is, for every kind of model that the configuration allows."""

import dataclasses

import pytest
import torch

from qkvit import QKViTConfig, QKViTModel
from qkvit.analysis.token_layout import TokenLayout


@pytest.mark.parametrize("image_size", [32, (32, 48)])
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"use_distillation_token": True},
        {"num_register_tokens": 4},
        {"use_class_token": False, "pooling": "mean"},
        {"use_class_token": False, "pooling": "mean", "num_register_tokens": 2},
    ],
)
def test_the_layout_of_a_configuration_counts_the_tokens_of_its_model(fields, image_size):
    config = QKViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=image_size, patch_size=8, **fields
    )
    layout = TokenLayout.from_config(config)
    tokens = QKViTModel(config)(torch.zeros(1, 3, 8 * layout.grid[0], 8 * layout.grid[1])).last_hidden_state
    layout.check(tokens.shape[1])
    assert layout.num_prefix_tokens == config.num_prefix_tokens
    assert layout.class_token == (0 if config.use_class_token else None)


def test_the_layout_follows_the_size_of_the_input():
    config = QKViTConfig(image_size=32, patch_size=(8, 4))
    assert TokenLayout.from_config(config, (64, 32)).grid == (8, 8)


def test_a_count_of_tokens_of_unknown_kind_makes_no_class_token():
    layout = TokenLayout(num_prefix_tokens=5, grid=(16, 16))
    assert layout.class_token is None
    assert layout.patches == slice(5, 261)


def test_distances_are_euclidean_between_centres():
    layout = TokenLayout(grid=(2, 3))
    places = [(row, column) for row in range(2) for column in range(3)]
    expected = [[((r - s) ** 2 + (c - d) ** 2) ** 0.5 for s, d in places] for r, c in places]
    torch.testing.assert_close(layout.distances(), torch.tensor(expected, dtype=torch.float64))


def test_a_layout_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TokenLayout(grid=(2, 2)).num_register_tokens = 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"grid": (0, 4)}, "is no .rows, columns. of patches"),
        ({"grid": (4,)}, "is no .rows, columns. of patches"),
        ({"grid": (4, 4), "num_register_tokens": -1}, "num_register_tokens=-1 is not a count"),
        ({"grid": (4, 4), "num_prefix_tokens": 3, "has_class_token": True}, "num_prefix_tokens=3, but .* make 1"),
        ({"grid": (4, 4), "has_distillation_token": True}, "needs has_class_token=True"),
    ],
)
def test_a_layout_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        TokenLayout(**fields)


def test_a_configuration_of_another_model_is_refused():
    from transformers import ViTConfig

    with pytest.raises(ValueError, match="no token layout is known for model_type='vit'"):
        TokenLayout.from_config(ViTConfig())


def test_an_image_that_the_patch_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"does not divide image_size .30, 32."):
        TokenLayout.from_config(QKViTConfig(image_size=32, patch_size=8), (30, 32))
