"""`attention_statistics` as its users meet it: what can be asked for, what comes back, and what is refused."""

import dataclasses
import math

import pytest
import torch

from qkvit import QKViTConfig, QKViTModel
from qkvit.analysis import (
    FUSED,
    AttentionStatistics,
    PreparedProjection,
    TokenLayout,
    attention_statistics,
    record,
)
from qkvit.analysis.statistics.groups import GROUPS, ON_REQUEST

LAYOUT = TokenLayout(grid=(3, 4), has_class_token=True, num_register_tokens=2)


def ask(inputs, **changes):
    given = {"query": inputs.query, "key": inputs.key, "layout": inputs.layout, "scaling": inputs.scaling, **changes}
    return attention_statistics(**given)


def test_every_field_belongs_to_one_group():
    names = [name for names in (GROUPS | ON_REQUEST).values() for name in names]
    fields = {field.name for field in dataclasses.fields(AttentionStatistics)}
    assert len(names) == len(set(names))
    assert {name if name != "products" else "head_similarity" for name in names} == fields - {"layout"}


def test_a_group_alone_is_as_it_is_among_all(random_attention, assert_as_exact, backend, device):
    inputs = random_attention(LAYOUT)
    moved = {"query": inputs.query.to(device), "key": inputs.key.to(device), "value": inputs.value.to(device)}
    moved["output_projection"] = inputs.output_projection.to(device)
    together = dict(ask(inputs, **moved, backend=backend).items())
    for group, names in GROUPS.items():
        alone = dict(ask(inputs, **moved, statistics=group, backend=backend).items())
        assert alone.keys() == set(names)
        assert_as_exact(alone, {name: together[name] for name in alone})


def test_all_that_can_be_had_is_computed_unless_less_is_asked(random_attention):
    inputs = random_attention(LAYOUT)
    assert ask(inputs).value_norm is None
    assert ask(inputs).distance is not None
    assert ask(inputs, value=inputs.value).value_norm is not None
    assert ask(inputs, statistics=FUSED).distance is None


@pytest.mark.parametrize(
    ("layout", "mask"),
    [
        (LAYOUT, None),
        (LAYOUT, "pairs"),
        (TokenLayout(grid=(5, 3)), "keys"),
        (TokenLayout(grid=(7, 13), has_class_token=True), None),
    ],
)
def test_the_mean_map_is_the_mean_of_the_heads_maps(random_attention, assert_as_exact, backend, device, layout, mask):
    interpreted = backend == "gpu" and not torch.cuda.is_available()  # by Triton: seconds for each map
    batch, heads = (1, 2) if interpreted else (3, 3)
    inputs = random_attention(layout, batch=batch, heads=heads, largest=30.0, mask=mask)
    moved = {"query": inputs.query.to(device), "key": inputs.key.to(device)}
    moved["attention_mask"] = inputs.mask if inputs.mask is None else inputs.mask.to(device)
    alone = ask(inputs, **moved, statistics="mean_map", backend=backend)
    together = ask(inputs, **moved, statistics=[*FUSED, "similarity", "mean_map"], backend=backend)
    exact = ask(inputs, attention_mask=inputs.mask, statistics=[*FUSED, "similarity", "mean_map"], backend="reference")
    assert [name for name, _ in alone.items()] == ["mean_map"]
    torch.testing.assert_close(alone.mean_map.double().cpu(), exact.mean_map, rtol=1e-4, atol=1e-35)
    assert_as_exact(dict(together.items()), dict(exact.items()))  # the map is read last
    assert "mean_map" not in together.per_head()


def test_a_prepared_projection_gives_the_numbers_of_its_weight(random_attention, assert_as_exact, backend, device):
    inputs = random_attention(LAYOUT, heads=3, largest=10.0)
    moved = {name: getattr(inputs, name).to(device) for name in ("query", "key", "value")}
    linear = torch.nn.Linear(inputs.output_projection.shape[1], len(inputs.output_projection), bias=False)
    linear.weight = torch.nn.Parameter(inputs.output_projection.to(device))
    prepared = PreparedProjection.of(linear, num_heads=3)
    found = ask(inputs, **moved, output_projection=prepared, statistics="values", backend=backend)
    exact = ask(
        inputs,
        value=inputs.value,
        output_projection=inputs.output_projection,
        statistics="values",
        backend="reference",
    )
    assert_as_exact(dict(found.items()), dict(exact.items()))
    with pytest.raises(ValueError, match=r"prepared for 1 heads, and the value has 3; prepare it with num_heads=3$"):
        ask(inputs, **moved, output_projection=PreparedProjection.of(linear, num_heads=1))


@pytest.mark.parametrize("against", [-0.5, -0.999])
def test_a_prepared_projection_is_exact_where_heads_work_against_each_other(random_attention, assert_as_exact, against):
    inputs = random_attention(LAYOUT, heads=2)
    value = inputs.value[:, :1].expand(-1, 2, -1, -1)
    query, key = (part[:, :1].expand(-1, 2, -1, -1) for part in (inputs.query, inputs.key))
    block = inputs.output_projection[:, : value.shape[-1]]
    linear = torch.nn.Linear(2 * block.shape[1], len(block), bias=False)
    linear.weight = torch.nn.Parameter(torch.cat([block, against * block], dim=1))
    given = {"query": query, "key": key, "value": value, "statistics": "values"}
    found = ask(inputs, **given, output_projection=PreparedProjection.of(linear, num_heads=2))
    exact = ask(inputs, **given, output_projection=linear.weight, backend="reference")
    tolerance = 1e-6 / (1 + against) ** 2  # the shares are of an output that all but vanishes
    torch.testing.assert_close(found.output_share.double(), exact.output_share, rtol=max(1e-4, tolerance), atol=0)
    assert_as_exact({"output_norm": found.output_norm}, {"output_norm": exact.output_norm})


def test_maps_are_made_only_for_who_names_them(random_attention):
    inputs = random_attention(LAYOUT)
    assert ask(inputs, value=inputs.value).mean_map is None


def test_shapes_are_as_the_table_says(random_attention):
    inputs = random_attention(LAYOUT, batch=2, heads=3)
    s = ask(inputs, value=inputs.value)
    of_heads, of_pairs = {"sink_share", "output_share"}, {"head_similarity"}
    for name, numbers in s.items():
        expected = (2, 3) if name in of_heads else (2, 3, 3) if name in of_pairs else (2, 3, 15)
        assert numbers.shape == (*expected, 2) if name == "centre" else numbers.shape == expected, name


def test_tokens_that_do_not_exist_have_no_weight_to_report(random_attention):
    inputs = random_attention(TokenLayout(grid=(3, 4)))
    s = ask(inputs, value=inputs.value)
    assert s.on_class_token is s.on_registers is s.weighted_on_class_token is s.weighted_on_registers is None
    assert s.on_prefix.eq(0).all()
    torch.testing.assert_close(s.on_patches, torch.ones(2, 3, 12))


def test_what_is_received_has_the_mean_one(random_attention):
    s = ask(random_attention(LAYOUT, largest=20.0))
    torch.testing.assert_close(s.received.mean(dim=-1), torch.ones(2, 3))
    torch.testing.assert_close(s.on_prefix + s.on_patches, torch.ones(2, 3, 15))


def test_distance_is_also_a_fraction_of_the_longer_side(random_attention):
    s = ask(random_attention(LAYOUT), statistics="distance")
    torch.testing.assert_close(s.distance_fraction, s.distance / 4, equal_nan=True)
    assert s.distance_fraction[..., 3:].max() < math.sqrt(2)


def test_distance_is_no_fraction_of_a_side_where_patches_are_not_square(random_attention):
    config = QKViTConfig.from_size("tiny", image_size=(24, 16), patch_size=(8, 4))
    s = ask(random_attention(TokenLayout.from_config(config)), statistics="distance")
    assert s.distance_fraction is None
    assert set(s.per_head()) == {"distance"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_results_are_precise_whatever_the_input(random_attention, dtype):
    inputs = random_attention(LAYOUT, dtype=dtype)
    expected = torch.float64 if dtype == torch.float64 else torch.float32
    for name, numbers in ask(inputs, value=inputs.value).items():
        assert numbers.dtype == (torch.int64 if name == "argmaximum" else expected), name


def test_sixteen_bits_are_computed_as_the_numbers_that_they_are(random_attention):
    inputs = random_attention(LAYOUT, dtype=torch.bfloat16, largest=80.0)
    of_bits = ask(inputs)
    of_floats = ask(inputs, query=inputs.query.float(), key=inputs.key.float())
    assert torch.equal(of_bits.entropy, of_floats.entropy)


def test_an_output_at_hand_is_used_unless_it_is_rounded(random_attention, assert_as_exact):
    inputs = random_attention(LAYOUT)
    given = {"value": inputs.value, "output_projection": inputs.output_projection, "statistics": "values"}
    output = (inputs.query @ inputs.key.transpose(-1, -2) * inputs.scaling).softmax(dim=-1) @ inputs.value
    exact = dict(ask(inputs, **given).items())
    assert_as_exact(dict(ask(inputs, **given, output=output).items()), exact)
    assert_as_exact(dict(ask(inputs, **given, output=output.bfloat16()).items()), exact)
    torch.testing.assert_close(ask(inputs, **given, output=2 * output).output_norm, 2 * exact["output_norm"])


def test_neither_inputs_nor_gradients_are_touched(random_attention):
    inputs = random_attention(LAYOUT)
    query, key = inputs.query.clone().requires_grad_(), inputs.key.clone()
    s = ask(inputs, query=query, key=key, value=inputs.value)
    assert not any(numbers.requires_grad for _, numbers in s.items())
    assert torch.equal(query, inputs.query)
    assert torch.equal(key, inputs.key)


def test_works_inside_and_after_inference_mode(random_attention):
    inputs = random_attention(TokenLayout(grid=(5, 3)))
    with torch.inference_mode():
        inside = ask(inputs)
    assert torch.equal(inside.distance, ask(inputs).distance)


def test_numbers_of_heads_are_means_over_tokens(random_attention):
    inputs = random_attention(LAYOUT)
    maps = (inputs.query @ inputs.key.transpose(-1, -2) * inputs.scaling).double().softmax(dim=-1)
    of_patches = maps[:, :, LAYOUT.patches]
    places = LAYOUT.distances()
    among = of_patches[..., LAYOUT.patches]
    expected = {
        "on_self": among.diagonal(dim1=-2, dim2=-1).mean(-1),
        "on_class_token": of_patches[..., 0].mean(-1),
        "distance": ((among * places).sum(-1) / among.sum(-1)).mean(-1),
        "entropy": torch.special.entr(maps).sum(-1).mean(-1),
    }
    means = ask(inputs).per_head()
    for name, numbers in expected.items():
        torch.testing.assert_close(means[name].double(), numbers, rtol=1e-4, atol=0)
    torch.testing.assert_close(means["distance_fraction"], means["distance"] / 4)
    cosines = ask(inputs).head_similarity
    torch.testing.assert_close(means["head_similarity"][:, 0], cosines[:, 0, 1:].mean(dim=-1))
    assert all(numbers.shape == (2, 3) and numbers.isfinite().all() for numbers in means.values())
    assert {"centre_row", "centre_column", "sink_share"} <= means.keys()
    assert not {"received", "argmaximum", "centre"} & means.keys()


def test_a_single_head_is_similar_to_no_other(random_attention):
    assert ask(random_attention(LAYOUT, heads=1)).per_head()["head_similarity"].isnan().all()


def test_nan_is_not_hidden(random_attention):
    inputs = random_attention(LAYOUT)
    query = inputs.query.clone()
    query[0, 1, 5] = torch.nan
    s = ask(inputs, query=query)
    rows = torch.zeros(2, 3, 15, dtype=torch.bool)
    rows[0, 1, 5] = True
    assert torch.equal(s.entropy.isnan(), rows)
    assert torch.equal(s.maximum.isnan(), rows)
    assert s.received[0, 1].isnan().all()


def test_what_is_recorded_can_be_measured(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    layout = TokenLayout.from_config(model.config)
    with torch.no_grad(), record(model, layers=1) as recording:
        model(pixels)
    layer, attention = recording[1], model.layers[1].attention
    s = attention_statistics(
        layer.query,
        layer.key,
        layout,
        scaling=layer.scaling,
        value=layer.value,
        output_projection=attention.o_proj,
        attention_mask=layer.attention_mask,
    )
    with torch.no_grad():
        weights = model(pixels, output_attentions=1).attentions[1].double()
    expected = torch.special.entr(weights).sum(dim=-1).mean(dim=-1)
    torch.testing.assert_close(s.per_head()["entropy"].double(), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": torch.zeros(2, 3, 14, 8)}, "key (2, 3, 14, 8)"),
        ({"query": torch.zeros(3, 15, 8), "key": torch.zeros(3, 15, 8)}, "(3, 15, 8)"),
        ({"key": torch.zeros(2, 3, 15, 8, dtype=torch.float64)}, "torch.float64"),
        ({"query": torch.zeros(2, 3, 15, 8).int(), "key": torch.zeros(2, 3, 15, 8).int()}, "torch.int32"),
        ({"layout": TokenLayout(grid=(3, 4))}, "the layout has 12 tokens"),
        ({"value": torch.zeros(2, 3, 14, 8)}, "value has the shape (2, 3, 14, 8)"),
        ({"output_projection": torch.zeros(20, 24)}, "there are none"),
        ({"value": torch.zeros(2, 3, 15, 8), "output_projection": torch.zeros(24, 20)}, "(24, 20)"),
        ({"output": torch.zeros(2, 3, 15, 8)}, "output has the shape"),
        ({"statistics": ["entropy", "entropie"]}, "entropie"),
        ({"statistics": "values"}, "need the values"),
        ({"backend": "tpu"}, "no backend 'tpu'"),
        ({"backend": "gpu"}, "cannot read tensors on cpu"),
        ({"attention_mask": torch.ones(2, 15, dtype=torch.bool)}, "(2, 15)"),
        ({"attention_mask": torch.ones(2, 1, 15, 14, dtype=torch.bool)}, "(2, 1, 15, 14)"),
        ({"attention_mask": torch.ones(2, 1, 15, 15, dtype=torch.int64)}, "torch.int64"),
        ({"attention_mask": torch.zeros(2, 1, 15, 15, dtype=torch.bool)}, "without any key"),
        ({"attention_mask": torch.full((2, 1, 1, 15), -torch.inf)}, "without any key"),
    ],
)
def test_what_does_not_fit_is_refused(random_attention, raises_sentence, monkeypatch, changes, message):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with raises_sentence(ValueError, message):
        ask(random_attention(LAYOUT), **changes)
