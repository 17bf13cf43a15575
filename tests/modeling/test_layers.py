"""A layer: its two residual lines, the MLP, LayerScale, dropout and stochastic depth."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit import QKViTModel
from qkvit.modeling.layers_qkvit import QKViTLayer, QKViTMLP, QKViTResidual
from qkvit.modeling.normalization_qkvit import make_norm


def test_a_layer_is_two_residual_branches_on_normalised_tokens(tiny_config):
    layer = QKViTLayer(tiny_config(layer_scale_init_value=0.3, attn_implementation="sdpa"), layer_idx=1).eval()
    tokens = torch.randn(2, 5, 32)
    middle = tokens + 0.3 * layer.attention(layer.attention_norm(tokens))[0]
    expected = middle + 0.3 * layer.mlp(layer.mlp_norm(middle))
    torch.testing.assert_close(layer(tokens)[0], expected)


@pytest.mark.parametrize("bias", [True, False])
def test_the_mlp_is_down_act_up(tiny_config, bias):
    mlp = QKViTMLP(tiny_config(mlp_bias=bias, intermediate_size=20))
    x = torch.randn(3, 32)
    up = torch.nn.functional.linear(x, mlp.up_proj.weight, mlp.up_proj.bias)
    gelu = up * 0.5 * (1 + torch.erf(up / 2**0.5))
    expected = torch.nn.functional.linear(gelu, mlp.down_proj.weight, mlp.down_proj.bias)
    torch.testing.assert_close(mlp(x), expected)
    assert (mlp.up_proj.bias is not None) == bias
    assert mlp.up_proj.out_features == 20


def test_swiglu_is_down_of_silu_gate_times_up(tiny_config):
    mlp = QKViTMLP(tiny_config(mlp_type="swiglu"))
    x = torch.randn(3, 32)
    gate = mlp.gate_proj(x)
    torch.testing.assert_close(mlp(x), mlp.down_proj(gate * torch.sigmoid(gate) * mlp.up_proj(x)))


def test_the_activation_is_the_one_that_the_configuration_names(tiny_config):
    mlp = QKViTMLP(tiny_config(hidden_act="relu"))
    x = torch.randn(3, 32)
    torch.testing.assert_close(mlp(x), mlp.down_proj(mlp.up_proj(x).clamp(min=0)))


@pytest.mark.parametrize("kind", ["layernorm", "rmsnorm"])
def test_the_normalisation_is_that_of_its_formula(tiny_config, kind):
    norm = make_norm(tiny_config(norm_type=kind, layer_norm_eps=0.1))
    torch.nn.init.normal_(norm.weight)
    x = 3 + torch.randn(4, 32, dtype=torch.float64)
    centred = x - x.mean(-1, keepdim=True) if kind == "layernorm" else x
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * norm.weight
    torch.testing.assert_close(norm.double()(x), expected.double(), rtol=1e-6, atol=1e-6)


# ---- what happens to a branch


def test_a_branch_passes_untouched_where_everything_is_off(tiny_config):
    branch = torch.randn(2, 3, 32)
    assert QKViTResidual(tiny_config(), drop_path_rate=0.0).train()(branch) is branch


def test_layer_scale_multiplies_each_channel(tiny_config):
    residual = QKViTResidual(tiny_config(layer_scale_init_value=1e-5), drop_path_rate=0.0)
    assert torch.equal(residual.layer_scale, torch.full((32,), 1e-5))
    torch.nn.init.normal_(residual.layer_scale)
    branch = torch.randn(2, 3, 32)
    torch.testing.assert_close(residual(branch), branch * residual.layer_scale)


@given(st.floats(0.05, 0.9), st.integers(0, 2**31 - 1))
def test_stochastic_depth_drops_whole_samples_and_keeps_the_expectation(tiny_config, rate, seed):
    torch.manual_seed(seed)
    residual = QKViTResidual(tiny_config(), drop_path_rate=rate).train()
    ratio = residual(torch.ones(4000, 2, 3))
    assert (ratio == ratio[:, :1, :1]).all(), "a sample is dropped or kept as a whole"
    torch.testing.assert_close(ratio[ratio > 0], torch.full_like(ratio[ratio > 0], 1 / (1 - rate)))
    standard_error = (rate / (1 - rate) / 4000) ** 0.5
    assert abs(ratio.mean().item() - 1) < 5 * standard_error


def test_stochastic_depth_and_dropout_are_of_training_alone(tiny_config):
    residual = QKViTResidual(tiny_config(hidden_dropout_prob=0.5), drop_path_rate=0.5).eval()
    branch = torch.randn(8, 3, 32)
    assert residual(branch) is branch
    assert not torch.equal(residual.train()(branch), branch)


def test_dropout_on_a_branch_drops_single_values(tiny_config):
    residual = QKViTResidual(tiny_config(hidden_dropout_prob=0.25), drop_path_rate=0.0).train()
    dropped = residual(torch.ones(64, 32, 8))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0, 4 / 3]))
    assert abs((dropped == 0).float().mean().item() - 0.25) < 0.02


@pytest.mark.parametrize("depth", [1, 2, 5])
def test_the_rate_of_stochastic_depth_grows_linearly_from_zero_to_the_rate_asked_for(tiny_config, depth):
    model = QKViTModel(tiny_config(num_hidden_layers=depth, drop_path_rate=0.4))
    rates = [layer.attention_residual.drop_path_rate for layer in model.layers]
    assert rates == [layer.mlp_residual.drop_path_rate for layer in model.layers]
    assert rates == pytest.approx([0.4 * index / max(1, depth - 1) for index in range(depth)])


def test_a_dropped_layer_leaves_the_tokens_as_they_were(tiny_config):
    layer = QKViTLayer(tiny_config(drop_path_rate=0.999, num_hidden_layers=2, attn_implementation="sdpa"), layer_idx=1)
    tokens = torch.randn(4, 5, 32)
    torch.manual_seed(0)
    assert torch.equal(layer.train()(tokens)[0], tokens)
