"""Q, K and V in one product of weights that lie next to each other: the same numbers, and weights that stay three."""

import copy
import io
import pickle
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from accelerate.utils.other import clean_state_dict_for_safetensors
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

from qkvit import QKViTModel
from qkvit.modeling.attention_qkvit import QKViTAttention

NAMES = ("q_proj", "k_proj", "v_proj")


def projected(attention, tokens) -> list[torch.Tensor]:
    with torch.no_grad():
        layers = [getattr(attention, name) for name in NAMES]
        heads = attention.neighbours.project(tokens, attention.num_attention_heads, *layers)
        return [tensor.transpose(1, 2).flatten(2) for tensor in heads]


def one_by_one(attention, tokens) -> list[torch.Tensor]:
    with torch.no_grad():
        return [getattr(attention, name)(tokens) for name in NAMES]


def assert_projects(attention, tokens) -> None:
    for ours, expected in zip(projected(attention, tokens), one_by_one(attention, tokens), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_one_product_gives_queries_keys_and_values_of_three(attention, tokens, products):
    attention, tokens = attention.double(), tokens.double()
    together = projected(attention, tokens)
    assert len(products) == 1
    for ours, expected in zip(together, one_by_one(attention, tokens), strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-13, atol=1e-13)


def test_without_biases_too(tiny_config, tokens, products):
    attention = QKViTAttention(tiny_config(query_bias=False, key_bias=False, value_bias=False), 0)
    attention.settle()
    assert_projects(attention, tokens)
    assert len(products) == 4


def test_large_weights_take_three_products(tiny_config, products):
    attention = QKViTAttention(tiny_config(hidden_size=768, num_attention_heads=12), 0)
    attention.settle()
    assert_projects(attention, torch.randn(1, 2, 768))
    assert len(products) == 6


def test_a_bias_on_some_of_them_takes_three_products(tiny_config, tokens, products):
    attention = QKViTAttention(tiny_config(key_bias=False), 0)
    attention.settle()
    assert_projects(attention, tokens)
    assert len(products) == 6


def test_models_have_it_when_made_loaded_and_moved(tiny_config, tmp_path, products):
    config = tiny_config()
    images = torch.rand(1, 3, *config.image_shape)

    def count(model) -> int:
        products.clear()
        with torch.no_grad():
            model.eval()(images.to(model.dtype))
        return len(products)

    made = QKViTModel(config)
    per_layer = 4  # Q K V, O, up, down
    assert count(made) == per_layer * config.num_hidden_layers + 1
    made.save_pretrained(tmp_path)
    assert count(QKViTModel.from_pretrained(tmp_path)) == count(made)
    assert count(made.to(torch.bfloat16)) == per_layer * config.num_hidden_layers + 1


@pytest.mark.parametrize(
    "write",
    [
        lambda linear, new: linear.weight.data.copy_(new),
        lambda linear, new: linear.load_state_dict({"weight": new, "bias": linear.bias.detach()}),
        lambda linear, new: linear.load_state_dict({"weight": new, "bias": linear.bias.detach()}, assign=True),
        lambda linear, new: setattr(linear.weight, "data", new),
        lambda linear, new: setattr(linear, "weight", nn.Parameter(new)),
        lambda linear, new: setattr(linear.weight, "data", linear.weight.data.T),
        lambda linear, new: nn.init.zeros_(linear.bias),
        lambda linear, new: setattr(linear.bias, "data", new[0].clone()),
        lambda linear, new: setattr(linear.bias, "data", linear.bias.data[:1].expand(len(new))),
        lambda linear, new: linear.register_parameter("bias", None),
    ],
    ids=["in place", "load", "assign", "data", "parameter", "transposed", "bias", "bias data", "one number", "no bias"],
)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_into_a_weight_is_seen(attention, tokens, name, write):
    before = projected(attention, tokens)[NAMES.index(name)]
    linear = getattr(attention, name)
    write(linear, torch.randn_like(linear.weight))
    assert_projects(attention, tokens)
    assert not torch.allclose(projected(attention, tokens)[NAMES.index(name)], before)


def test_a_step_of_the_optimizer_is_seen(attention, tokens, products):
    optimizer = torch.optim.AdamW(attention.parameters(), lr=0.1)
    attention(tokens)[0].square().sum().backward()
    optimizer.step()
    products.clear()
    assert_projects(attention, tokens)
    assert len(products) == 4


def test_another_layer_in_the_place_of_a_projection_is_used(attention, tokens):
    attention.v_proj = nn.Sequential(nn.Linear(tokens.shape[-1], attention.v_proj.out_features), nn.ReLU())
    assert projected(attention, tokens)[2].min() == 0


@pytest.mark.parametrize("name", NAMES)
def test_hooks_on_a_projection_run(attention, tokens, name):
    seen = []
    linear = getattr(attention, name)
    linear.register_forward_hook(lambda module, args, output: seen.append(output) or output * 2)
    plain = nn.functional.linear(tokens, linear.weight, linear.bias)
    torch.testing.assert_close(projected(attention, tokens)[NAMES.index(name)], 2 * plain)
    assert len(seen) == 1


def test_each_tensor_is_saved(attention):
    """Tensors in one storage would be taken for shared ones, and left out, by accelerate's saving."""
    state = attention.state_dict()
    assert set(clean_state_dict_for_safetensors(dict(state))) == set(state)
    file = io.BytesIO()
    torch.save(attention.q_proj.state_dict(), file)
    assert file.getbuffer().nbytes < attention.q_proj.weight.nbytes + 4096


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(attention, tokens, copied):
    other = copied(attention)
    with torch.no_grad():
        other.q_proj.weight.zero_()
    assert_projects(other, tokens)
    assert_projects(attention, tokens)
    assert not torch.equal(projected(other, tokens)[0], projected(attention, tokens)[0])


def test_weights_shared_with_other_processes_stay_shared(attention, tokens):
    attention.share_memory()
    attention.settle()
    assert all(parameter.is_shared() for parameter in attention.parameters())
    assert_projects(attention, tokens)


@pytest.mark.parametrize("strategy", ["file_descriptor", "file_system"])
@pytest.mark.parametrize("share", [lambda module: module.share_memory(), ForkingPickler.dumps], ids=["shared", "sent"])
@pytest.mark.parametrize("with_bias", [True, False], ids=["bias", "no bias"])
def test_a_change_after_the_weights_were_shared_is_seen(attention, tokens, share, strategy, with_bias):
    if not with_bias:
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj):
            linear.bias = None
        attention.settle()
        assert attention.neighbours.weight is not None
    before_that = torch.multiprocessing.get_sharing_strategy()
    torch.multiprocessing.set_sharing_strategy(strategy)
    try:
        share(attention)
    finally:
        torch.multiprocessing.set_sharing_strategy(before_that)
    for settled in (False, True):
        if settled:
            attention.settle()
        before = projected(attention, tokens)
        with torch.no_grad():
            attention.q_proj.weight.mul_(3)
            attention.v_proj.weight.sub_(1)
            if with_bias:
                attention.v_proj.bias.sub_(1)
            without_gradients = attention(tokens)[0]
        torch.testing.assert_close(without_gradients, attention(tokens)[0].detach(), rtol=1e-5, atol=1e-6)
        assert_projects(attention, tokens)
        assert not torch.allclose(projected(attention, tokens)[0], before[0])
        assert not torch.allclose(projected(attention, tokens)[2], before[2])


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_a_part_that_is_shared_alone_stays_shared(attention, tokens, part):
    shared = getattr(attention.k_proj, part).share_memory_()
    for _ in range(2):
        with torch.no_grad():
            shared.add_(1)
        assert_projects(attention, tokens)
        attention.settle()
        assert shared.is_shared()


@pytest.mark.parametrize("move", ["to", "float", "requires_grad_"])
def test_weights_that_stay_where_they_are_stay_with_whom_they_lie(tiny_config, tokens, move):
    """As those in the buffers of an optimizer that is spread over processes."""
    attention = QKViTAttention(tiny_config(), 0).eval()
    attention.settle()
    sizes = [parameter.numel() for parameter in attention.parameters()]
    buffer = torch.cat([parameter.detach().flatten() for parameter in attention.parameters()])
    for parameter, place in zip(attention.parameters(), buffer.split(sizes), strict=True):
        parameter.data = place.view(parameter.shape)
    getattr(attention, move)(*(["cpu"] if move == "to" else []))
    buffer.zero_()
    assert not any(parameter.any() for parameter in attention.parameters())
    assert not projected(attention, tokens)[0].any()


def test_a_copy_that_was_moved_in_inference_mode_can_be_trained(attention, tokens):
    copied = copy.deepcopy(attention)
    with torch.inference_mode():
        copied.to("cpu")
    copied(tokens)[0].sum().backward()
    assert copied.q_proj.weight.grad is not None


def test_weights_that_are_replaced_leave_no_joined_ones_behind(attention, tokens):
    joined = attention.neighbours.weight
    assert joined is not None
    for name in NAMES:
        getattr(attention, name).weight = nn.Parameter(torch.zeros_like(getattr(attention, name).weight))
    assert_projects(attention, tokens)
    assert attention.neighbours.weight is attention.neighbours.bias is None


def test_what_is_there_for_a_moment_does_not_part_the_weights(attention, tokens):
    joined, others = (
        attention.neighbours.weight,
        {name: torch.zeros_like(it) for name, it in attention.named_parameters()},
    )
    with torch.no_grad():
        assert not torch.func.functional_call(attention, others, (tokens,))[0].any()
    assert attention.neighbours.weight is joined
    assert_projects(attention, tokens)


def test_frozen_weights_that_change_within_autocast_are_seen(attention, tokens):
    """Autocast keeps conversions of trainable weights alone, and so of joined ones."""
    attention.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        projected(attention, tokens)
        for name in NAMES:
            getattr(attention, name).weight.zero_()
            getattr(attention, name).bias.zero_()
        assert not any(part.any() for part in projected(attention, tokens))


@pytest.mark.parametrize("part", ["weight", "bias"])
def test_what_is_pruned_is_used_pruned(attention, tokens, part):
    prune.random_unstructured(attention.q_proj, part, amount=0.5)
    assert_projects(attention, tokens)
    attention.settle()
    assert_projects(attention, tokens)


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_sparse_weight_takes_three_products(attention, tokens, products):
    attention.q_proj.weight = nn.Parameter(attention.q_proj.weight.detach().relu().to_sparse_csr())
    for _ in range(2):
        assert_projects(attention, tokens)
        attention.settle()
    assert len(products) == 12


def test_without_memory_nothing_is_joined(attention, tokens):
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = {name: mode.from_tensor(part) for name, part in attention.named_parameters()}
        with torch.no_grad():
            output = torch.func.functional_call(attention, fake, (mode.from_tensor(tokens),))[0]
    assert output.shape == tokens.shape
    assert attention.to("meta").neighbours.weight is None
    with torch.no_grad():
        assert attention(tokens.to("meta"))[0].is_meta


@pytest.mark.parametrize("shared", ["weight", "module"])
def test_weights_that_are_shared_are_left_where_they_are(tiny_model, pixels, shared):
    """One parameter under two names cannot lie in two places: one of them would be a copy that goes stale."""
    model = tiny_model()
    attention = model.qkvit.layers[0].attention
    if shared == "module":
        attention.k_proj = attention.q_proj
    else:
        attention.k_proj.weight = attention.q_proj.weight
    model.settle()
    with torch.no_grad():
        attention.q_proj.weight.mul_(2)
        without = model(pixels).logits
    torch.testing.assert_close(without, model(pixels).logits)
