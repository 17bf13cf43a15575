"""Layers that are taken together give the numbers of each one alone."""

import pytest
import torch

from qkvit.analysis import PreparedProjection, TokenLayout, attention_statistics, rollout
from qkvit.analysis.statistics import layers_together
from qkvit.analysis.statistics.layers_together import LayersTogether

LAYOUT = TokenLayout(grid=(3, 4), has_class_token=True)
HEADS, WIDTH = 3, 8
SCORES = 2 * HEADS * LAYOUT.num_tokens**2


@pytest.fixture
def waiting(monkeypatch) -> None:
    """Here too layers wait, as on a GPU."""
    monkeypatch.setattr(layers_together, "pays_to_wait", lambda query, value=None: True)


def tensors(seed: int, tokens: int = LAYOUT.num_tokens) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("query", "key", "value", "output")
    return {name: torch.randn(2, HEADS, tokens, WIDTH, generator=generator) for name in names}


def added(layers: dict[int, dict[str, torch.Tensor]], scaling: float = 0.3, mask=None) -> list:
    together, taken = LayersTogether(), []
    for layer, given in layers.items():
        taken += together.add(layer, dict(given), scaling, mask, frozenset())
    return [*taken, *together.flush()]


def test_layers_wait_until_there_is_work_enough(waiting, monkeypatch):
    monkeypatch.setattr(layers_together, "SCORES_AT_ONCE", 3 * SCORES)
    layers = {layer: tensors(layer) for layer in range(7)}
    taken = added(layers)
    assert [it.layers for it in taken] == [(0, 1, 2), (3, 4, 5), (6,)]
    for it in taken:
        for name in layers[0]:
            for layer, tensor in zip(it.layers, it.by_layer(it.tensors[name]), strict=True):
                assert torch.equal(tensor, layers[layer][name])


def test_layers_of_another_shape_or_with_a_mask_do_not_wait_for_each_other(waiting):
    layers = {0: tensors(0), 1: tensors(1), 2: tensors(2, tokens=5), 3: tensors(3)}
    assert [it.layers for it in added(layers)] == [(0, 1), (2,), (3,)]
    mask = torch.ones(1, 1, 1, 13, dtype=torch.bool)
    taken = added({layer: tensors(layer) for layer in range(3)}, mask=mask)
    assert [it.layers for it in taken] == [(0,), (1,), (2,)]
    assert all(it.mask is mask for it in taken)


def test_layers_that_wait_go_before_one_with_a_mask(waiting):
    together, mask = LayersTogether(), torch.ones(1, 1, 1, 13, dtype=torch.bool)
    assert not list(together.add(0, tensors(0), 0.3, None, frozenset()))
    assert [it.layers for it in together.add(1, tensors(1), 0.3, mask, frozenset())] == [(0,), (1,)]


def test_on_a_cpu_each_layer_is_taken_as_it_comes():
    layers = {layer: tensors(layer) for layer in range(3)}
    taken = added(layers)
    assert [it.layers for it in taken] == [(0,), (1,), (2,)]
    assert all(it.tensors["query"] is layers[place]["query"] for place, it in enumerate(taken))


def test_what_waits_can_be_left_out(waiting):
    together = LayersTogether()
    assert not list(together.add(0, tensors(0), 0.3, None, frozenset()))
    together.forget()
    assert not list(together.flush())


def test_what_waits_is_not_more_than_so_many_bytes(waiting, monkeypatch):
    given = {layer: tensors(layer) for layer in range(4)}
    monkeypatch.setattr(layers_together, "BYTES_AT_ONCE", 2 * sum(it.nbytes for it in given[0].values()))
    assert [it.layers for it in added(given)] == [(0, 1), (2, 3)]


def test_a_layer_that_comes_again_does_not_take_the_place_of_itself(waiting):
    together, taken = LayersTogether(), []
    for layer in (0, 1, 1):
        taken += together.add(layer, tensors(layer), 0.3, None, frozenset())
    assert [it.layers for it in [*taken, *together.flush()]] == [(0, 1), (1,)]


def test_projections_of_several_layers_are_each_used_for_their_own_images(backend, device):
    layers = [tensors(layer) for layer in range(3)]
    linears = [torch.nn.Linear(HEADS * WIDTH, 20).to(device) for _ in layers]
    prepared = [PreparedProjection.of(linear, HEADS) for linear in linears]

    def statistics(given, projection):
        given = {name: tensor.to(device) for name, tensor in given.items()}
        return attention_statistics(
            **given, layout=LAYOUT, scaling=0.3, output_projection=projection, statistics="values", backend=backend
        )

    stacked = {name: torch.cat([it[name] for it in layers]) for name in layers[0]}
    together = dict(statistics(stacked, PreparedProjection.together(prepared)).items())
    for place, (given, projection) in enumerate(zip(layers, prepared, strict=True)):
        for name, numbers in statistics(given, projection).items():
            torch.testing.assert_close(together[name].unflatten(0, (3, 2))[place], numbers, rtol=1e-5, atol=1e-6)


def test_a_projection_of_several_layers_wants_images_of_each(raises_sentence):
    given = tensors(0)
    prepared = PreparedProjection.together([PreparedProjection.of(torch.nn.Linear(24, 20), HEADS)] * 3)
    with raises_sentence(ValueError, "3 layers", "2 images"):
        attention_statistics(**given, layout=LAYOUT, scaling=0.3, output_projection=prepared)


@pytest.mark.parametrize("at_once", [1, 2 * SCORES, 10**9])
def test_a_rollout_is_the_same_with_layers_together(kernels, waiting, monkeypatch, at_once):
    monkeypatch.setattr(layers_together, "SCORES_AT_ONCE", at_once)
    layers = [tensors(layer) for layer in range(3)]
    queries, keys = ([it[name] for it in layers] for name in ("query", "key"))
    exact = rollout(queries, keys, start=0, scaling=0.3, backend="reference")
    moved = ([it.to(kernels) for it in those] for those in (queries, keys))
    found = rollout(*moved, start=0, scaling=0.3, backend="gpu")
    torch.testing.assert_close(found.double().cpu(), exact.double(), rtol=1e-4, atol=1e-9)


def test_layers_of_several_sizes_are_refused(raises_sentence):
    layers = [PreparedProjection.of(torch.nn.Linear(12, width), num_heads) for width, num_heads in ((6, 3), (6, 2))]
    with raises_sentence(ValueError, "(2, 6, 6)", "(3, 4, 6)"):
        PreparedProjection.together(layers)
