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
    """All layers wait, whatever their size."""
    monkeypatch.setattr(layers_together, "pays_to_wait", lambda query, value=None: True)


@pytest.fixture(params=["as on a GPU", "copied"])
def held(request, monkeypatch) -> None:
    """What waits is kept as it is, or copied into room of its own."""
    if request.param == "as on a GPU":
        monkeypatch.setattr(layers_together, "_Room", lambda tensors, layers: layers_together._Parts())


def tensors(seed: int, tokens: int = LAYOUT.num_tokens) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = ("query", "key", "value", "output")
    return {name: torch.randn(2, HEADS, tokens, WIDTH, generator=generator) for name in names}


def added(layers: dict[int, dict[str, torch.Tensor]], scaling: float = 0.3, mask=None) -> list:
    together, taken = LayersTogether(), []
    for layer, given in layers.items():
        taken += together.add(layer, dict(given), scaling, mask, frozenset())
    return [*taken, *together.flush()]


def test_layers_wait_until_there_is_work_enough(waiting, held, monkeypatch):
    monkeypatch.setitem(layers_together.SCORES_AT_ONCE, "cpu", 3 * SCORES)
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


@pytest.mark.parametrize(("at_once", "expected"), [(4 * SCORES, [(0, 1, 2, 3), (4,)]), (4 * SCORES - 1, [])])
def test_on_a_cpu_layers_wait_where_four_are_taken_together(monkeypatch, at_once, expected):
    monkeypatch.setitem(layers_together.SCORES_AT_ONCE, "cpu", at_once)
    layers = {layer: tensors(layer) for layer in range(5)}
    taken = added(layers)
    assert [it.layers for it in taken] == (expected or [(layer,) for layer in layers])
    if not expected:
        assert all(it.tensors["query"] is layers[place]["query"] for place, it in enumerate(taken))


@pytest.mark.parametrize("images", [0, 1, 8, 9])
def test_on_a_cpu_layers_of_few_images_wait(images):
    given = {name: it[:1].expand(images, -1, -1, -1) for name, it in tensors(0).items()}
    taken = added({0: given, 1: given})
    assert [it.layers for it in taken] == ([(0, 1)] if images in (1, 8) else [(0,), (1,)])


def test_no_more_layers_wait_than_there_is_room_for(waiting, monkeypatch):
    monkeypatch.setattr(layers_together, "LAYERS_AT_ONCE", 2)
    assert [it.layers for it in added({layer: tensors(layer) for layer in range(3)})] == [(0, 1), (2,)]


def test_what_waits_on_a_cpu_is_what_it_was(waiting):
    """The model writes over its tensors in the layers after it. Data types and shapes differ from name to name."""
    together = LayersTogether()
    given = {**tensors(0), "token_norms": torch.rand(2, 12), "value": tensors(1)["value"].bfloat16().transpose(2, 3)}
    before = {name: tensor.clone() for name, tensor in given.items()}
    assert not list(together.add(0, given, 0.3, None, frozenset()))
    for tensor in given.values():
        tensor.zero_()
    [taken] = together.flush()
    assert all(torch.equal(taken.tensors[name], tensor) for name, tensor in before.items())


def test_what_waits_can_be_left_out(waiting):
    together = LayersTogether()
    assert not list(together.add(0, tensors(0), 0.3, None, frozenset()))
    together.forget()
    assert not list(together.flush())


def test_what_waits_is_not_more_than_so_many_bytes(waiting, held, monkeypatch):
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
def test_a_rollout_is_the_same_with_layers_together(kernels, waiting, held, monkeypatch, at_once):
    monkeypatch.setattr(layers_together, "SCORES_AT_ONCE", {"cuda": at_once, "cpu": at_once})
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
