"""Statistics of the weights alone: equal to those of the C x C products, and the same in every basis of a head."""

import copy
import math

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

import qkvit
from qkvit.analysis.head_weights import head_weights
from qkvit.analysis.weights import effective_rank, product_singular_values, weight_statistics

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 32,
    "image_size": 16,
    "patch_size": 8,
}
FAMILIES = {
    "ViT": {},
    "DeiT": {},
    "Dinov2": {},
    "Dinov2WithRegisters": {},
    "DINOv3ViT": {},
    "CLIPVision": {},
    "SiglipVision": {},
    "IJepa": {},
    "ViTMSN": {},
    "Aimv2Vision": {},
    "Beit": {},
    "VideoMAE": {},  # the output projection beside the attention module
    "InternVLVision": {},
}


@pytest.fixture
def model(tiny_model):
    return tiny_model(qkvit.QKViTModel, layer_scale_init_value=0.5).double()


def of_family(name, **fields):
    torch.manual_seed(0)
    return getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**SMALL, **fields)).eval()


def products(model):
    """(W_Q^T W_K, W_O W_V) of every layer and head as C x C matrices."""
    for weights in head_weights(model).values():
        yield weights.query.mT @ weights.key, weights.output @ weights.value


def test_everything_equals_that_of_the_whole_product(model):
    found = weight_statistics(model, control=False)
    for layer, (qk, ov) in enumerate(products(model)):
        for name, whole in (("qk", qk), ("ov", ov)):
            kept = getattr(found, f"{name}_singular_values")[layer]
            expected = torch.linalg.svdvals(whole)
            torch.testing.assert_close(kept, expected[..., : kept.shape[-1]])
            assert expected[..., kept.shape[-1] :].max() < 1e-12
            norms = torch.linalg.matrix_norm(whole)
            torch.testing.assert_close(found.numbers[f"{name}_norm"][layer], norms)
            symmetric = torch.linalg.matrix_norm((whole + whole.mT) / 2).square() / norms.square()
            torch.testing.assert_close(found.numbers[f"{name}_symmetric_share"][layer], symmetric)
            antisymmetric = torch.linalg.matrix_norm((whole - whole.mT) / 2).square() / norms.square()
            torch.testing.assert_close(found.numbers[f"{name}_antisymmetric_share"][layer], antisymmetric)


def test_scores_are_what_the_numbers_with_gain_say(model):
    """For standard normal tokens the variance of a score is ||A'||^2, and the query bias adds ||c||^2 to it."""
    layer = model.encoder.layers[1] if hasattr(model, "encoder") else model.layers[1]
    weights = head_weights(model)[1]
    found = weight_statistics(model, control=False).numbers
    normalised = torch.randn(2, 20_000, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens = normalised - normalised.mean(dim=-1, keepdim=True)
    tokens = tokens * layer.attention_norm.weight + layer.attention_norm.bias
    query, key = (
        projection(tokens[index]).unflatten(-1, (layer.attention.num_attention_heads, -1)).transpose(0, 1).detach()
        for index, projection in enumerate((layer.attention.q_proj, layer.attention.k_proj))
    )
    content = query - query.mean(dim=1, keepdim=True)  # what is left is the bias, here and in the key
    by_bias = (query.mean(dim=1, keepdim=True) @ (key - key.mean(dim=1, keepdim=True)).mT)[:, 0]
    by_content = torch.einsum("hnd,hnd->hn", content, key - key.mean(dim=1, keepdim=True))
    torch.testing.assert_close(by_content.std(dim=-1), found["qk_norm_with_gain"][1], rtol=0.05, atol=0)
    share = by_bias.var(dim=-1) / (by_bias.var(dim=-1) + by_content.var(dim=-1))
    torch.testing.assert_close(share, found["query_bias_share"][1], rtol=0.05, atol=0.01)
    assert weights.centred


def change_basis(model, seed, spread):
    """The same function, with every head's weights in another basis."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if not hasattr(module, "q_proj"):
            continue
        heads, width = module.num_attention_heads, module.head_dim
        for head in range(heads):
            rows = slice(head * width, (head + 1) * width)
            for first, second in ((module.q_proj, module.k_proj), (module.v_proj, None)):
                basis = _invertible(width, spread, generator)
                first.weight[rows] = basis @ first.weight[rows]
                first.bias[rows] = basis @ first.bias[rows]
                if second is None:
                    module.o_proj.weight[:, rows] = module.o_proj.weight[:, rows] @ basis.inverse()
                else:
                    second.weight[rows] = basis.inverse().mT @ second.weight[rows]
                    second.bias[rows] = basis.inverse().mT @ second.bias[rows]


def _invertible(width, spread, generator):
    """A random matrix with singular values from 1 / spread to spread."""
    left, right = (
        torch.linalg.qr(torch.randn(width, width, generator=generator, dtype=torch.float64)).Q for _ in range(2)
    )
    exponents = 2 * torch.rand(width, generator=generator, dtype=torch.float64) - 1
    return left @ torch.diag(spread**exponents) @ right


@given(seed=st.integers(0, 10**6), spread=st.floats(1, 100))
@torch.no_grad()
def test_no_number_depends_on_the_basis_of_a_head(model, pixels, seed, spread):
    other = copy.deepcopy(model)
    change_basis(other, seed, spread)
    pixels = pixels.double()
    torch.testing.assert_close(other(pixels).last_hidden_state, model(pixels).last_hidden_state, rtol=1e-6, atol=1e-8)
    one, two = weight_statistics(model, control=False), weight_statistics(other, control=False)
    for name in one.numbers:
        torch.testing.assert_close(two.numbers[name], one.numbers[name], rtol=1e-7, atol=1e-9, msg=name)
    torch.testing.assert_close(two.qk_singular_values, one.qk_singular_values, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(two.ov_singular_values, one.ov_singular_values, rtol=1e-7, atol=1e-9)


@torch.no_grad()
def test_numbers_with_gain_do_not_depend_on_where_a_scale_is_stored(model):
    other = copy.deepcopy(model)
    for module in other.modules():
        if hasattr(module, "attention_norm"):
            factors = torch.rand(32, dtype=torch.float64) + 0.5
            module.attention_norm.weight *= factors
            module.attention_norm.bias *= factors
            for projection in (module.attention.q_proj, module.attention.k_proj, module.attention.v_proj):
                projection.weight /= factors
            module.attention_residual.layer_scale *= -factors
            module.attention.o_proj.weight /= -factors[:, None]
    one, two = (weight_statistics(net, control=False).numbers for net in (model, other))
    for name in one:
        if name.endswith("with_gain") or "bias" in name:
            torch.testing.assert_close(two[name], one[name], msg=name)
    assert not torch.allclose(two["ov_symmetric_share"], one["ov_symmetric_share"])


@torch.no_grad()
def test_a_symmetric_and_an_antisymmetric_head():
    config = qkvit.QKViTConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=16, patch_size=8
    )
    model = qkvit.QKViTModel(config)
    attention = next(module for module in model.modules() if hasattr(module, "q_proj"))
    attention.k_proj.weight.copy_(attention.q_proj.weight)
    turned = attention.q_proj.weight[16:].unflatten(0, (8, 2)).flip(1) * torch.tensor([1.0, -1.0])[:, None]
    attention.k_proj.weight[16:] = turned.flatten(0, 1)  # sum_k (a_k b_k^T - b_k a_k^T)
    shares = weight_statistics(model, control=False).numbers["qk_symmetric_share"][0]
    torch.testing.assert_close(shares, torch.tensor([1.0, 0.0], dtype=torch.float64), rtol=0, atol=1e-12)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=8))
def test_effective_rank_is_between_one_and_the_rank(values):
    values = torch.tensor(values, dtype=torch.float64)
    rank = effective_rank(values).item()
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert math.isclose(rank, effective_rank(7 * values).item(), rel_tol=1e-9)
    assert math.isclose(effective_rank(torch.cat([values, values])).item(), 2 * rank, rel_tol=1e-9)


def test_singular_values_of_heads_wider_than_the_model():
    left, right = torch.randn(2, 7, 5, dtype=torch.float64), torch.randn(2, 7, 5, dtype=torch.float64)
    torch.testing.assert_close(product_singular_values(left, right), torch.linalg.svdvals(left.mT @ right))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_families_of_transformers(name):
    model = of_family(name)
    found = weight_statistics(model)
    assert found.numbers["qk_norm"].shape == (2, 4)
    for layer, (qk, ov) in enumerate(products(model)):
        torch.testing.assert_close(found.numbers["qk_norm"][layer], torch.linalg.matrix_norm(qk))
        torch.testing.assert_close(found.numbers["ov_norm"][layer], torch.linalg.matrix_norm(ov))
    assert all(values.isfinite().all() for values in found.numbers.values())


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_the_norm_before_and_the_scale_after_are_found(name):
    model = of_family(name)
    before = weight_statistics(model, control=False).numbers
    doubled = 0
    for path, parameter in model.named_parameters():
        end = path.rpartition(".")[0].rpartition(".")[2]
        if end in ("layernorm_before", "norm1", "layer_norm1", "rms_norm1") and path.endswith("weight"):
            parameter *= 2
            doubled += 1
    assert doubled == 2
    after = weight_statistics(model, control=False).numbers
    torch.testing.assert_close(after["qk_norm_with_gain"], 4 * before["qk_norm_with_gain"])
    torch.testing.assert_close(after["ov_norm_with_gain"], 2 * before["ov_norm_with_gain"])


def test_the_control_is_random_seeded_and_of_the_same_size(model):
    one, same, other = (weight_statistics(model, seed=seed).control for seed in (0, 0, 1))
    assert torch.equal(one.qk_singular_values, same.qk_singular_values)
    assert not torch.equal(one.qk_singular_values, other.qk_singular_values)
    ratio = one.numbers["qk_norm"] / weight_statistics(model).numbers["qk_norm"]
    assert ratio.log().abs().max() < 0.7


def test_the_control_has_the_biases_and_gains_of_the_model(model):
    """Ten times the gain is ten times the norm of both; without biases, random weights owe nothing to them either."""
    before = weight_statistics(model).control.numbers
    for layer in model.layers:
        layer.attention_norm.weight.data *= 10
        layer.attention_norm.bias.data *= 0
    biased = weight_statistics(model).control.numbers
    for layer in model.layers:
        layer.attention.q_proj.bias.data *= 0
    unbiased = weight_statistics(model).control.numbers
    torch.testing.assert_close(biased["ov_norm_with_gain"], 10 * before["ov_norm_with_gain"])
    torch.testing.assert_close(biased["ov_norm"], before["ov_norm"])
    assert biased["query_bias_share"].min() > 0
    assert unbiased["query_bias_share"].max() == 0


def test_the_table_has_a_row_for_each_layer_head_and_statistic(model):
    statistics = weight_statistics(model)
    rows = list(statistics.rows())
    assert len(rows) == 3 * 2 * len(statistics.numbers)
    row = next(row for row in rows if (row["layer"], row["head"], row["statistic"]) == (2, 1, "ov_norm"))
    assert row["value"] == statistics.numbers["ov_norm"][2, 1].item()
    assert row["control"] == statistics.control.numbers["ov_norm"][2, 1].item()


def test_what_the_numbers_leave_out_is_said(tiny_model):
    assert weight_statistics(tiny_model(), control=False).caveats == ()
    (normed,) = weight_statistics(tiny_model(qk_norm=True), control=False).caveats
    assert "normalised" in normed
    (turned,) = weight_statistics(tiny_model(position_embedding="rope2d"), control=False).caveats
    assert "positions" in turned
    assert len(weight_statistics(of_family("DINOv3ViT"), control=False).caveats) == 1
    assert weight_statistics(of_family("Beit"), control=False).caveats == ()
    for where in ("use_relative_position_bias", "use_shared_relative_position_bias"):
        (added,) = weight_statistics(of_family("Beit", **{where: True}), control=False).caveats
        assert "relative position" in added
    model = tiny_model(qkvit.QKViTModel)
    for layer in model.layers:
        layer.norm_of_another_name = layer.attention_norm
        del layer.attention_norm
    (unknown,) = weight_statistics(model, control=False).caveats
    assert "norm_of_another_name" in unknown


def test_weights_that_are_not_numbers_are_refused_with_their_layer(model, raises_sentence):
    attention = [module for module in model.modules() if hasattr(module, "q_proj")][1]
    with torch.no_grad():
        attention.k_proj.weight[3, 3] = math.nan
    with raises_sentence(ValueError, "layer 1", "key", "NaN"):
        weight_statistics(model)


def test_a_fused_projection_is_refused(model, raises_sentence):
    attention = next(module for module in model.modules() if hasattr(module, "q_proj"))
    attention.q_proj = None
    with raises_sentence(ValueError, "layer 0", "query projection"):
        weight_statistics(model)


def test_the_mlp_of_a_layer_is_not_taken_for_the_output_projection(raises_sentence):
    """Also where it has the name and the shape of one."""
    model = of_family("VideoMAE")
    for layer in model.encoder.layer:
        layer.attention = layer.attention.attention
    with raises_sentence(ValueError, "layer 0", "no linear output projection"):
        weight_statistics(model)


def test_every_singular_value_has_a_row_also_without_a_control(model):
    for control in (True, False):
        found = weight_statistics(model, control=control)
        rows = list(found.singular_value_rows())
        layers, heads, width = found.qk_singular_values.shape
        assert len(rows) == 2 * layers * heads * width
        for row in rows:
            place = found.layers.index(row["layer"]), row["head"], row["index"]
            name = f"{row['product']}_singular_values"
            assert row["value"] == getattr(found, name)[place].item()
            assert row["control"] == (getattr(found.control, name)[place].item() if control else None)


def test_layers_of_several_sizes_are_refused(raises_sentence):
    sizes = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 16, "image_size": 32, "window_size": 4}
    model = transformers.SwinModel(transformers.SwinConfig(**sizes))
    with raises_sentence(ValueError, "layer 1 has 2 heads of a width of 32", "layer 0 has 1 of 16"):
        weight_statistics(model)


def test_norms_that_do_nothing_leave_nothing_out():
    model = of_family("ViT")
    for module in model.modules():
        if hasattr(module, "q_proj"):
            module.q_norm = module.k_norm = torch.nn.Identity()
    assert weight_statistics(model, control=False).caveats == ()
