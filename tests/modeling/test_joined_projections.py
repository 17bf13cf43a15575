"""Q, K and V in one product of weights joined in each pass, as in training: where nobody sees it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import prune
from torch.utils._python_dispatch import TorchDispatchMode

from qkvit.modeling import shortcuts_qkvit
from qkvit.modeling.attention_qkvit import QKViTAttention

NAMES = ("q_proj", "k_proj", "v_proj")


@pytest.fixture
def joining(monkeypatch) -> None:
    monkeypatch.setattr(shortcuts_qkvit, "_pays_to_join", lambda x: True)


def projected(attention, tokens) -> list[torch.Tensor]:
    """Queries, keys and values, (B, H, N, D) each."""
    layers = [getattr(attention, name) for name in NAMES]
    return attention.neighbours.project(tokens, attention.num_attention_heads, *layers)


def gradients(attention, tokens, **autocast) -> list[torch.Tensor | None]:
    attention.zero_grad()
    tokens = tokens.clone().requires_grad_()
    with torch.autocast("cpu", **(autocast or {"enabled": False})):
        output, _, *qkv = attention(tokens)
    (output.square().sum() + sum(tensor.float().square().sum() for tensor in qkv)).backward()
    return [tokens.grad, *(parameter.grad for parameter in attention.parameters())]


def test_training_on_a_gpu_takes_one_product_with_the_gradients_of_three(attention, tokens, products, monkeypatch):
    expected = gradients(attention, tokens)
    products.clear()
    monkeypatch.setattr(shortcuts_qkvit, "_pays_to_join", lambda x: True)
    found = gradients(attention, tokens)
    assert len(products) == 2  # and the output projection
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def test_no_gradient_is_copied_to_be_taken_apart(attention, tokens, joining):
    """Gradients of Q, K and V that lie as tokens, heads, width become that of the one product in a single copy."""

    class Counted(TorchDispatchMode):
        copies = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.copies += function in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
            return function(*args, **(kwargs or {}))

    given = projected(attention, tokens)
    back = [torch.randn_like(part.transpose(1, 2).contiguous()).transpose(1, 2) for part in given]
    with Counted() as counted:
        torch.autograd.backward(given, back)
    assert counted.copies == 0


def test_joined_under_autocast_it_is_near_the_three(attention, tokens, products, monkeypatch):
    monkeypatch.setattr(shortcuts_qkvit, "_pays_to_join", lambda x: False)
    expected = gradients(attention, tokens, dtype=torch.bfloat16)
    products.clear()
    monkeypatch.setattr(shortcuts_qkvit, "_pays_to_join", lambda x: True)
    for ours, theirs in zip(gradients(attention, tokens, dtype=torch.bfloat16), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05 * float(theirs.abs().max()))
    assert len(products) == 2


@pytest.mark.parametrize(("width", "plain", "count"), [(128, 4, 2), (192, 2, 2), (384, 2, 2), (448, 4, 4)])
def test_on_a_cpu_it_is_taken_in_training_of_narrow_models(tiny_config, products, width, plain, count):
    attention = QKViTAttention(tiny_config(hidden_size=width, num_attention_heads=width // 64), 0)
    attention.settle()
    tokens = torch.randn(1, 5, width)
    attention(tokens)
    assert len(products) == plain
    products.clear()
    with torch.autocast("cpu", torch.bfloat16):
        attention(tokens)
        assert len(products) == count
        products.clear()
        with torch.no_grad():
            attention(tokens)
    assert len(products) == 2  # of weights that lie next to each other
    products.clear()
    apart = copy.deepcopy(attention)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        apart(tokens)
    assert len(products) == 4


def test_on_a_cpu_it_is_not_taken_in_a_trace(tiny_config, products, monkeypatch):
    """The check of a trace runs without gradients, and would find another graph."""
    attention = QKViTAttention(tiny_config(hidden_size=192, num_attention_heads=3), 0)
    monkeypatch.setattr(torch.jit, "is_tracing", lambda: True)
    attention(torch.randn(1, 5, 192))
    assert len(products) == 4


def test_what_is_frozen_or_hooked_is_not_joined(attention, tokens, products, joining):
    attention.q_proj.requires_grad_(False)
    assert gradients(attention, tokens)[1] is None
    assert len(products) == 4
    attention.q_proj.requires_grad_(True)
    attention.k_proj.bias.requires_grad_(False)
    gradients(attention, tokens)
    assert len(products) == 8
    attention.k_proj.bias.requires_grad_(True)
    seen = []
    attention.v_proj.register_forward_hook(lambda module, args, output: seen.append(output))
    gradients(attention, tokens)
    assert len(products) == 12
    assert len(seen) == 1


@pytest.mark.parametrize(
    "register",
    [
        lambda layer, seen: layer.register_full_backward_hook(lambda *_: seen.append(layer)),
        lambda layer, seen: layer.register_full_backward_pre_hook(lambda *_: seen.append(layer)),
        lambda layer, seen: nn.modules.module.register_module_forward_hook(
            lambda module, *_: seen.append(module) if module is layer else None
        ),
        lambda layer, seen: nn.modules.module.register_module_full_backward_hook(
            lambda module, *_: seen.append(module) if module is layer else None
        ),
    ],
    ids=["backward", "before backward", "of every module", "backward of every module"],
)
def test_who_waits_for_gradients_or_for_every_module_sees_each_projection(attention, tokens, joining, register):
    seen: list[nn.Module] = []
    handle = register(attention.k_proj, seen)
    try:
        gradients(attention, tokens)
    finally:
        handle.remove()
    assert seen == [attention.k_proj]


def test_weights_that_are_made_anew_in_each_pass_are_left_alone(attention, tokens, products, joining):
    prune.l1_unstructured(attention.q_proj, "weight", amount=0.5)
    gradients(attention, tokens)
    assert len(products) == 4
    assert (attention.q_proj.weight == 0).float().mean() == 0.5


def test_weights_that_autocast_does_not_convert_are_not_joined(attention, tokens, products, joining):
    """Those of a model in bfloat16, or of FSDP2 with such parameters: the copy would last until the backward pass."""
    attention.bfloat16()(tokens.bfloat16())
    assert len(products) == 4


def test_a_projection_of_another_width_is_not_joined(attention, tokens, products, joining):
    attention.v_proj = nn.Linear(tokens.shape[-1], 2 * attention.v_proj.out_features)
    *_, value = projected(attention, tokens)
    torch.testing.assert_close(value.transpose(1, 2).flatten(2), attention.v_proj(tokens))


def test_queries_that_are_joined_may_be_written_into(attention, tokens, joining):
    query, key, _ = projected(attention, tokens)
    before, other = query.detach().clone(), key.detach().clone()
    query.mul_(2)
    assert torch.equal(query, 2 * before)
    assert torch.equal(key, other)
    query.sum().backward()
    torch.testing.assert_close(attention.q_proj.bias.grad, torch.full_like(attention.q_proj.bias, 20.0))


@pytest.mark.parametrize("biases", [(True, True, True), (False, False, False), (True, False, True)])
def test_joined_with_any_biases(tiny_config, tokens, products, joining, biases):
    names = ("query_bias", "key_bias", "value_bias")
    attention = QKViTAttention(tiny_config(**dict(zip(names, biases, strict=True))), 0)
    found = projected(attention, tokens)
    assert len(products) == (1 if len(set(biases)) == 1 else 3)
    for name, ours in zip(NAMES, found, strict=True):
        theirs = getattr(attention, name)(tokens)
        torch.testing.assert_close(ours.transpose(1, 2).flatten(2), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
def test_a_compiled_graph_joins_too(tiny_model, pixels, joining, training):
    model = tiny_model().train(training)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.set_grad_enabled(training):
        torch.testing.assert_close(compiled(pixels).logits, model(pixels).logits)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu_it_is_taken_under_autocast_alone(attention, tokens, products):
    attention, tokens = attention.cuda(), tokens.cuda()
    attention(tokens)
    assert len(products) == 4
    with torch.autocast("cuda", torch.bfloat16):
        attention(tokens)
        assert len(products) == 6
        with torch.no_grad():
            attention(tokens)
    assert len(products) == 8  # of weights that lie next to each other
