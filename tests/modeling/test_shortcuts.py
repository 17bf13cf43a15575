"""The shortcuts of inference: the same numbers, taken where they can be, and never where somebody could see them."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qkvit.modeling.layers_qkvit import QKViTMLP
from qkvit.modeling.shortcuts_qkvit import attend


@pytest.fixture
def mlp(tiny_config) -> QKViTMLP:
    torch.manual_seed(0)
    return QKViTMLP(tiny_config()).eval()


# ---- the activation in place


@pytest.mark.parametrize("act", ["gelu", "gelu_python", "gelu_pytorch_tanh", "gelu_python_tanh", "silu", "quick_gelu"])
@pytest.mark.parametrize("mlp_type", ["mlp", "swiglu"])
def test_the_activation_gives_the_same_bits_with_gradients_and_without(tiny_config, tokens, act, mlp_type):
    mlp = QKViTMLP(tiny_config(hidden_act=act, mlp_type=mlp_type))
    given = tokens.clone()
    with_gradients = mlp(tokens)
    with torch.no_grad():
        assert torch.equal(mlp(tokens), with_gradients)
    assert torch.equal(tokens, given)


def test_it_takes_no_second_tensor_of_the_widest_size(mlp, tokens):
    made = []
    with torch.no_grad():
        mlp.activation.register_forward_hook(lambda *_: made.append(1))
        mlp(tokens)
        assert made == [1]  # seen, so it ran as a module
        mlp.activation._forward_hooks.clear()
        places = []
        mlp.down_proj.register_forward_pre_hook(lambda module, args: places.append(args[0].data_ptr()))
        linear, up = nn.functional.linear, []

        def watched(x, weight, bias=None):
            output = linear(x, weight, bias)
            up.append(output.data_ptr())
            return output

        nn.functional.linear = watched
        try:
            mlp(tokens)
        finally:
            nn.functional.linear = linear
    assert places == up[:1]


def test_a_hook_keeps_what_it_saw_before_the_activation(mlp, tokens):
    seen = []
    mlp.up_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        mlp(tokens)
    assert torch.equal(seen[0], nn.functional.linear(tokens, mlp.up_proj.weight, mlp.up_proj.bias))


def test_a_layer_that_gives_its_input_back_does_not_lose_it(mlp, tokens):
    mlp.up_proj, mlp.down_proj, given = nn.Identity(), nn.Identity(), tokens.clone()
    with torch.no_grad():
        mlp(tokens)
    assert torch.equal(tokens, given)


def test_another_activation_is_used(mlp, tokens):
    mlp.activation, mlp.down_proj = nn.ReLU(), nn.Identity()
    with torch.no_grad():
        assert mlp(tokens).min() == 0


# ---- attention without what it does not need


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "mask"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_attention_is_that_of_transformers_to_the_bit(attention, masked, dropout):
    torch.manual_seed(2)
    query, key, value = (torch.randn(2, 2, 5, 16, requires_grad=True) for _ in range(3))
    mask = torch.rand(2, 1, 5, 5) > 0.3 if masked else None
    found = []
    for function in (sdpa_attention_forward, partial(attend, sdpa_attention_forward)):
        torch.manual_seed(3)
        output, weights = function(attention, query, key, value, mask, scaling=0.25, dropout=dropout)
        assert weights is None
        found.append([output, *torch.autograd.grad(output.square().sum(), (query, key, value))])
    assert all(torch.equal(theirs, ours) for theirs, ours in zip(*found, strict=True))


def test_a_function_that_a_user_puts_in_the_place_of_sdpa_is_called(attention, tokens, monkeypatch):
    called = []

    def theirs(module, query, key, value, mask, **kwargs):
        called.append(module)
        return sdpa_attention_forward(module, query, key, value, mask, **kwargs)

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", theirs)
    attention.config._attn_implementation = "sdpa"
    attention(tokens)
    assert called == [attention]


# ---- all of them


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_torch_func_and_tangents_pass_through(tiny_model, pixels):
    model = tiny_model()
    parameters, labels = dict(model.named_parameters()), torch.tensor([0, 1])

    def loss(parameters, image, label):
        arguments = {"pixel_values": image[None], "labels": label[None]}
        return torch.func.functional_call(model, parameters, kwargs=arguments).loss

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, pixels, labels)
    for index in range(2):
        model.zero_grad()
        model(pixels[index : index + 1], labels=labels[index : index + 1]).loss.backward()
        for name, parameter in model.named_parameters():
            torch.testing.assert_close(each[name][index], parameter.grad, rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        mapped = torch.func.vmap(lambda image: model(image[None]).logits[0])(pixels)
        torch.testing.assert_close(mapped, model(pixels).logits)
        model.set_attn_implementation("eager")
        with forward_ad.dual_level():
            found = forward_ad.unpack_dual(model(forward_ad.make_dual(pixels, torch.ones_like(pixels))).logits)
        step = 1e-3
        difference = (model(pixels + step).logits - model(pixels - step).logits) / (2 * step)
    torch.testing.assert_close(found.tangent, difference, rtol=1e-2, atol=1e-3)
