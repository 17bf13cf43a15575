"""Rollout equals the product of the maps, from tensors, from a recording and from a model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from qkvit import QKViTModel
from qkvit.analysis import (
    TokenLayout,
    Zero,
    attention_statistics,
    intervene,
    map_rollout,
    model_rollout,
    record,
    rollout,
)
from qkvit.analysis.attention_product import AttentionCall
from qkvit.analysis.recording import LayerRecord, Recording
from qkvit.analysis.statistics import fused_cpu
from qkvit.analysis.statistics.cpu_library import library


def matrix(maps):
    """The whole rollout (B, N, N) from maps (B, H, N, N), the first layer first."""
    product = torch.eye(maps[0].shape[-1], dtype=torch.float64)
    for weights in maps:
        product = (weights.double().mean(dim=1) + torch.eye(weights.shape[-1])) / 2 @ product
    return product


def random_layers(depth, largest, seed, random_attention, layout, mask=None):
    layers = [random_attention(layout, largest=largest, seed=seed + index, mask=mask) for index in range(depth)]
    scores = [it.query.double() @ it.key.double().transpose(-1, -2) * it.scaling for it in layers]
    if mask:
        scores = [it.masked_fill(~layers[0].mask, -torch.inf) for it in scores]
    return [it.query for it in layers], [it.key for it in layers], layers[0], [it.softmax(dim=-1) for it in scores]


LAYOUT = TokenLayout(grid=(3, 5), has_class_token=True)


@given(
    depth=some.integers(1, 5),
    largest=some.sampled_from([0.0, 1.0, 20.0, 80.0]),
    start=some.integers(-16, 15),
    mask=some.sampled_from([None, "keys", "pairs"]),
    seed=some.integers(0, 1000),
)
def test_a_row_of_the_rollout_is_that_of_the_product_of_the_maps(
    rows_read_by, random_attention, depth, largest, start, mask, seed
):
    queries, keys, first, maps = random_layers(depth, largest, seed, random_attention, LAYOUT, mask)
    exact = matrix(maps)[:, start]
    for backend in ("cpu", "reference"):
        row = rollout(queries, keys, start, scaling=first.scaling, attention_mask=first.mask, backend=backend)
        torch.testing.assert_close(row.double(), exact, rtol=1e-4, atol=1e-35)


@pytest.mark.skipif(library() is None, reason="there is no C compiler")
@given(
    heads=some.integers(1, 4),
    queries=some.integers(1, 30),
    tokens=some.integers(1, 600),  # whole vectors and not, one piece of a row and more
    hidden=some.sampled_from([0.0, 0.5]),
    largest=some.sampled_from([0.0, 1.0, 80.0]),
    seed=some.integers(0, 1000),
)
def test_rows_are_added_up_as_their_softmax(heads, queries, tokens, hidden, largest, seed):
    torch.manual_seed(seed)
    scores, weights, before = largest * torch.rand(heads, queries, tokens), torch.rand(queries), torch.rand(tokens)
    scores[..., 1:].masked_fill_(torch.rand(heads, queries, tokens - 1) < hidden, -torch.inf)
    exact = before.double() + (weights.double()[:, None] * scores.double().softmax(dim=-1)).sum(dim=(0, 1))
    found = before.clone()
    fused_cpu.add_rows(scores, weights, found)
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-35)


@pytest.mark.skipif(library() is None, reason="there is no C compiler")
def test_scores_that_are_not_numbers_are_not_hidden_in_what_is_added():
    scores = torch.rand(2, 3, 21)
    scores[1, 2, 20] = torch.nan
    found = torch.zeros(21)
    fused_cpu.add_rows(scores, torch.ones(3), found)
    assert found.isnan().all()


@given(
    depth=some.integers(1, 5),
    largest=some.sampled_from([0.0, 1.0, 20.0, 80.0]),
    start=some.integers(-16, 15),
    seed=some.integers(0, 1000),
)
def test_a_rollout_of_maps_is_that_of_their_queries_and_keys(random_attention, depth, largest, start, seed):
    queries, keys, first, maps = random_layers(depth, largest, seed, random_attention, LAYOUT)
    exact = matrix(maps)[:, start]
    means = [
        attention_statistics(query, key, LAYOUT, scaling=first.scaling, statistics="mean_map").mean_map
        for query, key in zip(queries, keys, strict=True)
    ]
    torch.testing.assert_close(map_rollout(means, start).double(), exact, rtol=1e-4, atol=1e-35)
    torch.testing.assert_close(map_rollout(maps, start), exact)
    torch.testing.assert_close(map_rollout(maps, layout=LAYOUT), matrix(maps)[:, 0])


def test_a_rollout_of_maps_is_as_exact_under_autocast():
    maps = [torch.rand(2, 2, 17, 17).softmax(dim=-1) for _ in range(3)]
    plain = map_rollout(maps, start=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(map_rollout(maps, start=0), plain)


def test_what_is_no_row_of_maps_is_refused(raises_sentence):
    maps = [torch.full((2, 3, 4, 4), 0.25)] * 2
    with raises_sentence(ValueError, "there are no maps"):
        map_rollout([], 0)
    with raises_sentence(ValueError, "there are no maps of layer 1", "output_attentions=True"):
        map_rollout([maps[0], None, maps[0]], 0)
    with raises_sentence(ValueError, "start=", "layout="):
        map_rollout(maps)
    for other in (torch.ones(2, 3, 4, 5), torch.ones(1, 3, 4, 4), torch.ones(2, 5, 5), torch.ones(4, 4)):
        with raises_sentence(ValueError, str(tuple(other.shape)), "maps of one forward pass"):
            map_rollout([other, *maps], 0)


def test_the_same_row_on_every_backend(random_attention, backend, device):
    queries, keys, first, maps = random_layers(4, 10.0, 0, random_attention, LAYOUT)
    on_device = [[tensor.to(device) for tensor in tensors] for tensors in (queries, keys)]
    row = rollout(*on_device, 0, scaling=first.scaling, backend=backend)
    torch.testing.assert_close(row.double().cpu(), matrix(maps)[:, 0], rtol=1e-4, atol=0)


def test_a_vector_weighs_the_rows(random_attention):
    queries, keys, first, maps = random_layers(3, 5.0, 0, random_attention, LAYOUT)
    start = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    row = rollout(queries, keys, start, scaling=first.scaling)
    torch.testing.assert_close(row.double(), (start.double()[:, None] @ matrix(maps))[:, 0], rtol=1e-4, atol=0)


def test_it_does_not_matter_how_the_vector_lies_in_memory(rows_read_by, random_attention):
    queries, keys, first, _ = random_layers(3, 5.0, 0, random_attention, LAYOUT)
    start = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)).T
    row = rollout(queries, keys, start, scaling=first.scaling)
    torch.testing.assert_close(row, rollout(queries, keys, start.contiguous(), scaling=first.scaling))


def test_the_layout_says_where_to_start(random_attention):
    queries, keys, first, maps = random_layers(2, 5.0, 0, random_attention, LAYOUT)
    given_layout = rollout(queries, keys, layout=LAYOUT, scaling=first.scaling)
    torch.testing.assert_close(given_layout, rollout(queries, keys, 0, scaling=first.scaling))
    nameless = TokenLayout(grid=(3, 5), num_prefix_tokens=1)
    row = rollout(queries, keys, layout=nameless, scaling=first.scaling)
    torch.testing.assert_close(row.double(), matrix(maps)[:, 1:].mean(dim=1), rtol=1e-4, atol=0)


def test_a_recording_knows_all_that_is_needed(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    with torch.no_grad(), record(model, tensors=("query", "key")) as recording:
        maps = model(pixels, output_attentions=True).attentions
    torch.testing.assert_close(rollout(recording, start=3).double(), matrix(maps)[:, 3], rtol=1e-4, atol=0)


@pytest.mark.parametrize("beside", [{"keys": 5}, {"scaling": 1.0}, {"attention_mask": torch.ones(1, 1, 17, 17)}])
def test_what_a_recording_knows_is_not_taken_beside_it(tiny_model, pixels, raises_sentence, beside):
    """As the second argument, where `map_rollout` takes the row, stand the keys."""
    with torch.no_grad(), record(model := tiny_model(QKViTModel)) as recording:
        model(pixels)
    with raises_sentence(ValueError, "a Recording knows", "start="):
        rollout(recording, layout=TokenLayout.from_model(model, 16), **beside)


@pytest.mark.parametrize("layers_at_once", [None, 1, 2, 3, 5])
def test_a_model_is_rolled_out_in_as_many_passes_as_asked(tiny_model, pixels, layers_at_once):
    model = tiny_model(QKViTModel)
    with torch.no_grad():
        maps = model(pixels, output_attentions=True).attentions
    row = model_rollout(model, pixels, layers_at_once=layers_at_once)
    torch.testing.assert_close(row.double(), matrix(maps)[:, 0], rtol=1e-4, atol=0)


def test_no_more_of_the_model_runs_than_must(tiny_model, pixels):
    model, runs = tiny_model(QKViTModel), []
    for index, layer in enumerate(model.layers):
        layer.register_forward_hook(lambda *_, index=index: runs.append(index))
    before = model.config._attn_implementation
    model_rollout(model, pixels, layers_at_once=1)
    assert runs == [0, 1, 2, 0, 1, 0]
    assert model.config._attn_implementation == before


def test_every_family_can_be_rolled_out(family, family_model):
    model = family_model(family)
    row = model_rollout(model, torch.rand(2, 3, 16, 16))
    assert row.shape[0] == 2
    torch.testing.assert_close(row.sum(dim=-1), torch.ones(2))


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_of_a_model_with_a_text_tower_the_vision_tower_is_rolled_out(two_towers, family):
    model, pixels = two_towers(family), torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(model_rollout(model, pixels), model_rollout(model.vision_model, pixels))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start": None}, "which row"),
        ({"start": 16}, "start=16 is not one of 16 tokens"),
        ({"start": torch.ones(3)}, "start has the shape (3,)"),
        ({"scaling": None}, "scaling"),
        ({"backend": "fast"}, "no backend 'fast'"),
        ({"queries": []}, "queries of 0 layers"),
        ({"queries": [], "keys": []}, "no layers"),
        ({"layout": TokenLayout(grid=(3, 3)), "start": None}, "the layout has 9 tokens"),
    ],
)
def test_what_does_not_fit_is_refused(random_attention, raises_sentence, change, message):
    queries, keys, first, _ = random_layers(2, 5.0, 0, random_attention, LAYOUT)
    arguments = {"queries": queries, "keys": keys, "start": 0, "scaling": first.scaling} | change
    with raises_sentence(ValueError, message):
        rollout(**arguments)


@pytest.mark.parametrize(("layers", "missing"), [(-1, 0), ([0, 2], 1), ([1, 2], 0)])
def test_a_recording_with_gaps_is_refused(tiny_model, pixels, raises_sentence, layers, missing):
    model = tiny_model()
    with record(model, layers=layers, tensors=("query", "key")) as recording:
        model(pixels)
    with raises_sentence(ValueError, f"no layer {missing}", "model_rollout"):
        rollout(recording, start=0)


@pytest.mark.parametrize("target", ["scores", "attention"])
def test_maps_that_query_and_key_do_not_say_are_refused(tiny_model, pixels, raises_sentence, target):
    model, edits = tiny_model(QKViTModel), {(1, target): Zero(heads=0)}
    with torch.no_grad(), intervene(model, edits), record(model, tensors=("query", "key", "attention")) as recording:
        model(pixels)
    with raises_sentence(ValueError, "layer 1", f"replaces the {target}"):
        rollout(recording, start=0)
    with raises_sentence(ValueError, "layer 1", f"replaces the {target}"), intervene(model, edits):
        model_rollout(model, pixels)
    assert map_rollout([recording[layer].attention for layer in recording], start=0).shape == (2, 17)  # what is left


def test_a_product_that_is_not_known_is_refused(tiny_model, raises_sentence):
    module = tiny_model(QKViTModel).layers[0].attention
    recording = Recording([0], {0: module}, "QKViTModel")
    tensor = torch.ones(1, 2, 18, 16)
    recording.calls[0].append(LayerRecord(0, AttentionCall(module, tensor, tensor, tensor, None, {"softcap": 30.0})))
    with raises_sentence(ValueError, "layer 0", "attention with softcap"):
        rollout(recording, start=0)


def test_layers_of_different_passes_are_refused(random_attention, raises_sentence):
    one, other = random_attention(LAYOUT), random_attention(TokenLayout(grid=(2, 2)))
    with raises_sentence(ValueError, "other numbers of images or tokens"):
        rollout([one.query, other.query], [one.key, other.key], 0, scaling=1.0)
