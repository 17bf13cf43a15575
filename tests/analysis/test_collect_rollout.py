"""Attention rollout over a data set: the same numbers however few layers are kept at a time."""

import pytest
import torch

import qkvit
from qkvit.analysis import collecting

NUM_IMAGES = 7


WAYS = {  # and how many layers are kept at once
    "maps are kept": None,
    "all layers are kept": None,
    "the first half runs again": 2,
    "each quarter runs again": 1,
}


@pytest.fixture(params=WAYS)
def rollout_way(request, monkeypatch):
    """Few tokens or many: each way is right for both."""
    assert collecting.TOKENS_FOR_MAPS >= 197
    monkeypatch.setattr(collecting, "TOKENS_FOR_MAPS", 10**6 if request.param.startswith("maps") else 0)
    kept = WAYS[request.param] or 3
    monkeypatch.setattr(collecting.Collecting, "_kept_at_once", lambda self: kept)
    return request.param


def test_many_tokens_that_outweigh_the_model_are_kept_of_fewer_layers(tiny_model, quiet, monkeypatch):
    asked = []
    by_layer = collecting.rows_by_layer
    monkeypatch.setattr(
        collecting, "rows_by_layer", lambda *args, **kw: asked.append(kw["layers_at_once"]) or by_layer(*args, **kw)
    )
    monkeypatch.setattr(collecting, "TOKENS_FOR_MAPS", 0)
    model = tiny_model(qkvit.QKViTModel, num_hidden_layers=4)
    config = model.config
    of_image = 2 * 2 * model(torch.rand(1, 3, 16, 16)).last_hidden_state[0].numel() * 4
    fitting = sum(parameter.nbytes for parameter in model.parameters()) // of_image
    assert config.hidden_size == config.num_attention_heads * config.head_dim
    cases = (
        (2000, fitting // 4, 4),
        (2000, fitting // 2, 2),
        (2000, fitting + 1, 2),
        (0, fitting // 2, 2),
        (0, fitting, 2),
        (0, fitting + 1, 1),
    )
    for tokens, images, at_once in cases:
        monkeypatch.setattr(collecting, "TOKENS_FOR_HALVES", tokens)
        asked.clear()
        quiet(model, [torch.rand(images, 3, 16, 16)], rollout=True)
        assert asked == [at_once]


@pytest.mark.parametrize("layers", [None, [0, 2]])
def test_rollout_down_to_every_layer(tiny_model, source, layers, over, quiet, rollout_way):
    """In exact numbers: the product of (A + I) / 2 over the layers above."""
    model = tiny_model(qkvit.QKViTModel, num_register_tokens=1, attn_implementation="eager")
    (whole,) = over(source, NUM_IMAGES)
    with torch.no_grad():
        maps = model(whole["pixel_values"], output_attentions=True).attentions
    row = torch.eye(maps[0].shape[-1], dtype=torch.float64)[:1].expand(NUM_IMAGES, 1, -1)
    rows = {}
    for layer in (2, 1, 0):
        row = (row + row @ maps[layer].double().mean(dim=1)) / 2
        rows[layer] = row[:, 0]
    collected = quiet(model, over(source), rollout=True, layers=layers)
    plain = quiet(model, over(source), layers=layers)
    for place, layer in enumerate(layers or (0, 1, 2)):
        row = rows[layer]
        expected = {"on_class_token": row[:, 0], "on_registers": row[:, 1], "on_patches": row[:, 2:].sum(dim=1)}
        expected["entropy"] = -(row * row.log()).sum(dim=1)
        for name, numbers in expected.items():
            found = collected.mean(f"rollout_{name}")[place].item()
            assert found == pytest.approx(numbers.mean().item(), rel=1e-5)
        torch.testing.assert_close(collected.map("rollout")[place], row.mean(dim=0), rtol=1e-5, atol=1e-7)
    assert [name for name in collected.statistics if not name.startswith("rollout")] == list(plain.statistics)
    for name in plain.statistics:
        torch.testing.assert_close(collected.mean(name), plain.mean(name), equal_nan=True)
    assert not [name for name in plain.statistics if name.startswith("rollout")]


def test_a_rollout_that_was_not_asked_for_has_no_map(model, source, raises_sentence, over, quiet):
    with raises_sentence(ValueError, "ask for rollout=True"):
        quiet(model, over(source)).map("rollout")


def test_the_model_runs_once_where_all_is_kept(model, quiet, rollout_way):
    layers_run = []
    for layer in model.layers:
        layer.register_forward_hook(lambda *_: layers_run.append(1))
    quiet(model, [torch.rand(2, 3, 16, 16)], rollout=True)
    assert len(layers_run) == {None: 3, 2: 3 + 1, 1: 3 + 2 + 1}[WAYS[rollout_way]]


def test_layers_that_are_not_asked_for_have_no_statistics_of_their_maps(model, quiet, rollout_way):
    collected = quiet(model, [torch.rand(2, 3, 16, 16)], rollout=True, layers=[1], statistics="entropy")
    assert {row["layer"] for row in collected.rows()} == {1}
    assert collected.layers == (1,)


def test_the_second_run_that_rollout_needs_takes_no_statistics(model, monkeypatch, quiet, rollout_way):
    images, take = [], collecting.attention_statistics
    monkeypatch.setattr(
        collecting,
        "attention_statistics",
        lambda query, *args, **kwargs: images.append(len(query)) or take(query, *args, **kwargs),
    )
    quiet(model, [torch.rand(2, 3, 16, 16)], rollout=True)
    assert sum(images) == 2 * len(model.layers)  # of layers that were taken together, one after the other


def test_a_model_that_runs_twice_for_a_batch_is_refused(model, quiet, raises_sentence, rollout_way):
    for rollout in (False, True):
        with raises_sentence(ValueError, "layer 0 runs twice", "keep='all'"):
            quiet(model, [torch.rand(2, 3, 16, 16)], forward=lambda m, x: (m(1 - x), m(x)), rollout=rollout)


def test_rollout_without_a_class_token_starts_at_the_patches(tiny_model, quiet):
    model = tiny_model(qkvit.QKViTModel, use_class_token=False, pooling="mean")
    collected = quiet(model, [torch.rand(2, 3, 16, 16)], rollout=True, statistics="entropy")
    assert collected.mean("rollout_on_patches").tolist() == pytest.approx([1.0] * 3)
    assert "rollout_on_class_token" not in collected.statistics
