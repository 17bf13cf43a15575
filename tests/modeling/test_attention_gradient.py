"""The gradients of attention in bfloat16 on a CPU, by matrix products, beside those of torch and of float64."""

from contextlib import contextmanager
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qkvit import QKViTForImageClassification
from qkvit.analysis import record
from qkvit.modeling import attention_gradient_qkvit
from qkvit.modeling.attention_gradient_qkvit import SmallAttention, pays_to_multiply

sdpa = nn.functional.scaled_dot_product_attention


def random(*shape: int, scale: float = 1.0, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    """(B, H, N, D) that lie in memory as projections do: (B, N, H, D)."""
    batch_size, num_heads, num_tokens, head_dim = shape
    generator = torch.Generator().manual_seed(seed)
    lying = torch.randn(batch_size, num_tokens, num_heads, head_dim, generator=generator) * scale
    return lying.to(dtype).transpose(1, 2).requires_grad_()


def gradients(attend, query, key, value, gradient) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(attend(query, key, value), (query, key, value), gradient.detach())


def exact(query, key, value, gradient, scaling) -> tuple[torch.Tensor, ...]:
    """Of softmax(scaling * Q K^T) V in float64, by autograd."""
    leaves = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    output = (leaves[0] @ leaves[1].transpose(-1, -2) * scaling).softmax(-1) @ leaves[2]
    return torch.autograd.grad(output, leaves, gradient.detach().double())


def magnitudes(query, key, value, gradient, scaling) -> tuple[torch.Tensor, ...]:
    """What is added up for each gradient, without signs: rounding it to n bits costs some 2^-n of that."""
    q, k, v, g = (tensor.detach().double() for tensor in (query, key, value, gradient))
    weights = (q @ k.transpose(-1, -2) * scaling).softmax(-1)
    of_weights = g.abs() @ v.abs().transpose(-1, -2)
    of_scores = weights * (of_weights + (weights * of_weights).sum(-1, keepdim=True)) * scaling
    return of_scores @ k.abs(), of_scores.transpose(-1, -2) @ q.abs(), weights.transpose(-1, -2) @ g.abs()


@pytest.fixture
def calls(monkeypatch) -> list[torch.Size]:
    """The shapes of the queries whose gradients were taken by matrix products, of however few tokens."""
    shapes: list[torch.Size] = []
    found = attention_gradient_qkvit._gradients

    def counted(query, *rest):
        shapes.append(query.shape)
        return found(query, *rest)

    monkeypatch.setattr(attention_gradient_qkvit, "_gradients", counted)
    monkeypatch.setattr(attention_gradient_qkvit, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(attention_gradient_qkvit, "_FEWEST_WEIGHTS", 0)
    return shapes


# ---- the numbers


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 3), st.integers(1, 40), st.sampled_from([1, 8, 16])),
    scale=st.sampled_from([0.0, 0.1, 1.0, 4.0]),
    seed=st.integers(0, 2**16),
    at_once=st.sampled_from([1, 2**14, 2**24]),
)
def test_gradients_are_those_of_float64_to_bfloat16(shape, scale, seed, at_once):
    query, key, value, gradient = (
        random(*shape, scale=size, seed=seed + i) for i, size in enumerate((scale, scale, 1, 1))
    )
    scaling = shape[-1] ** -0.5
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_gradient_qkvit, "_BYTES_AT_ONCE", at_once)
        ours = gradients(lambda *qkv: SmallAttention.apply(*qkv, scaling), query, key, value, gradient)
    wanted = exact(query, key, value, gradient, scaling)
    summed = magnitudes(query, key, value, gradient, scaling)
    for got, want, magnitude in zip(ours, wanted, summed, strict=True):
        assert got.dtype == torch.bfloat16
        assert ((got.double() - want).abs() <= 4 * 2**-8 * magnitude + 1e-30).all()


def test_they_are_as_exact_as_those_of_torch():
    query, key, value, gradient = (random(2, 3, 197, 64, seed=seed) for seed in range(4))
    wanted = exact(query, key, value, gradient, 0.125)
    theirs = gradients(lambda *qkv: sdpa(*qkv, scale=0.125), query, key, value, gradient)
    ours = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.125), query, key, value, gradient)
    for got, peer, want in zip(ours, theirs, wanted, strict=True):
        error, peers_error = ((it.double() - want).norm() / want.norm() for it in (got, peer))
        assert error < 0.005
        assert error < 1.5 * peers_error


def test_a_last_round_of_fewer_images(monkeypatch):
    query, key, value, gradient = (random(5, 3, 17, 16, seed=seed) for seed in range(4))
    at_once = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.25), query, key, value, gradient)
    monkeypatch.setattr(attention_gradient_qkvit, "_BYTES_AT_ONCE", 2 * 3 * 17 * (6 * 17 + 22 * 16))
    in_rounds = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.25), query, key, value, gradient)
    torch.testing.assert_close(in_rounds, at_once, rtol=1e-2, atol=1e-4)


def test_scores_of_eighty_stay_finite_and_right():
    query, key, value, gradient = (
        random(1, 2, 65, 16, scale=scale, seed=3 + i) for i, scale in enumerate((9, 9, 1, 1))
    )
    assert (query.float() @ key.float().transpose(-1, -2)).abs().max() * 0.25 > 80
    ours = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.25), query, key, value, gradient)
    for got, want in zip(ours, exact(query, key, value, gradient, 0.25), strict=True):
        assert (got.double() - want).norm() < 0.02 * want.norm()


def test_the_output_is_that_of_torch_to_the_bit():
    query, key, value = (random(2, 3, 65, 16, seed=seed) for seed in range(3))
    assert torch.equal(SmallAttention.apply(query, key, value, 0.25), sdpa(query, key, value, scale=0.25))


def test_backward_under_autocast_gives_the_same():
    query, key, value, gradient = (random(2, 3, 65, 16, scale=4, seed=seed) for seed in range(4))
    outside = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.25), query, key, value, gradient)
    with torch.autocast("cpu", torch.bfloat16):
        inside = gradients(lambda *qkv: SmallAttention.apply(*qkv, 0.25), query, key, value, gradient)
    assert all(map(torch.equal, inside, outside))


# ---- where it is taken


@pytest.fixture
def qkv() -> tuple[torch.Tensor, ...]:
    return tuple(random(2, 4, 65, 16, seed=seed) for seed in range(3))


@pytest.fixture
def able(monkeypatch) -> None:
    """A processor with instructions for bfloat16."""
    monkeypatch.setattr(attention_gradient_qkvit, "_multiplies_bfloat16", lambda: True)


def test_few_tokens_in_bfloat16_that_are_trained(qkv, able):
    assert pays_to_multiply(*qkv, None, 0.0)
    frozen = [tensor.detach() for tensor in qkv]
    assert pays_to_multiply(frozen[0], frozen[1], qkv[2], None, 0.0)
    with torch.autocast("cpu", torch.bfloat16):
        assert pays_to_multiply(*qkv, None, 0.0)


class Shard(torch.Tensor):
    """A tensor that is somebody else's."""


def replaced(qkv, because: str) -> tuple[torch.Tensor, ...]:
    query, key, value = qkv
    match because:
        case "frozen":
            return tuple(tensor.detach() for tensor in qkv)
        case "float32":
            return tuple(tensor.float() for tensor in qkv)
        case "value float32":
            return query, key, value.float()
        case "values wider":
            return query, key, random(2, 4, 65, 32)
        case "subclass":
            return query, key, value.detach().as_subclass(Shard).requires_grad_()
        case "many":
            return tuple(random(1, 1, 731, 4, seed=seed) for seed in range(3))
        case "few":
            return tuple(random(1, 4, 5, 16, seed=seed) for seed in range(3))
    return query, key, value


@contextmanager
def without_onednn():
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of Intel's GPUs
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


OTHER_TENSORS = ("frozen", "float32", "value float32", "values wider", "subclass", "many", "few")


@pytest.mark.parametrize("because", [*OTHER_TENSORS, "mask", "dropout"])
def test_elsewhere_it_is_not(qkv, able, because):
    mask = torch.ones(2, 1, 65, 65, dtype=torch.bool) if because == "mask" else None
    assert not pays_to_multiply(*replaced(qkv, because), mask, 0.1 if because == "dropout" else 0.0)


@pytest.mark.parametrize(
    "context",
    [
        torch.no_grad,
        partial(sdpa_kernel, SDPBackend.MATH),
        partial(torch.autocast, "cpu", torch.float16),
        without_onednn,
    ],
    ids=["no grad", "torch's plain way", "float16", "without oneDNN"],
)
def test_nor_within(qkv, able, context):
    with context():
        assert not pays_to_multiply(*qkv, None, 0.0)


def test_nor_where_the_processor_has_no_instructions_for_it(qkv, monkeypatch):
    monkeypatch.setattr(attention_gradient_qkvit, "_multiplies_bfloat16", lambda: False)
    assert not pays_to_multiply(*qkv, None, 0.0)


@pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")
def test_many_gradients_at_a_time_are_those_of_torch(qkv):
    query, key, value = (tensor[:1, :, :9] for tensor in qkv)
    some = torch.randn(3, 1, 4, 9, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    found = []
    for attend in (lambda *qkv: SmallAttention.apply(*qkv, 0.25), lambda *qkv: sdpa(*qkv, scale=0.25)):
        output = attend(query, key, value)
        found.append(torch.autograd.grad(output, (query, key, value), some, is_grads_batched=True, retain_graph=True))
        inputs = (query, key, value)
        found.append(
            torch.func.vmap(lambda it, o=output, i=inputs: torch.autograd.grad(o, i, it, retain_graph=True))(some)
        )
    for others in found[1:]:
        torch.testing.assert_close(found[0], others, rtol=0.02, atol=0.02)


def test_not_within_the_transforms_of_torch_func(qkv, able):
    seen = []

    def total(query):
        seen.append(pays_to_multiply(query, *qkv[1:], None, 0.0))
        return query.float().sum()

    torch.func.grad(total)(qkv[0])
    assert seen == [False]


@pytest.mark.parametrize("frozen", [(), (0,), (0, 1)], ids=["all", "no query", "value alone"])
def test_a_second_derivative_is_refused_as_that_of_torch(qkv, frozen):
    """Not given as 0: whose graph was asked for is told by torch that there is none."""
    qkv = [tensor.detach() if place in frozen else tensor for place, tensor in enumerate(qkv)]
    for attend in (lambda *qkv: SmallAttention.apply(*qkv, 0.25), lambda *qkv: sdpa(*qkv, scale=0.25)):
        first = torch.autograd.grad(attend(*qkv).float().sum(), qkv[2], create_graph=True)[0]
        with pytest.raises(RuntimeError, match=r"derivative for .* is not implemented"):
            first.float().sum().backward()


# ---- in the model


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def loss_and_gradients(model, pixels, **kwargs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        output = model(pixels, labels=torch.zeros(len(pixels), dtype=torch.long), **kwargs)
    output.loss.backward()
    return output.logits, [parameter.grad.clone() for parameter in model.parameters()]


def test_every_layer_of_a_model_in_training_takes_it(tiny_model, calls, monkeypatch):
    model: QKViTForImageClassification = tiny_model(attn_implementation="sdpa").train()
    pixels = torch.rand(3, 3, model.config.image_size, model.config.image_size)
    logits, found = loss_and_gradients(model, pixels)
    assert len(calls) == model.config.num_hidden_layers
    monkeypatch.setattr(attention_gradient_qkvit, "_MOST_TOKENS", 0)
    plain_logits, plain = loss_and_gradients(model, pixels)
    assert len(calls) == model.config.num_hidden_layers
    assert torch.equal(logits, plain_logits)
    ours, theirs = (torch.cat([gradient.flatten() for gradient in all_of]) for all_of in (found, plain))
    assert 0 < (ours - theirs).norm() < 0.01 * theirs.norm()  # together: those of key biases are 0 but for rounding


def test_gradient_checkpointing_comes_to_the_same_gradients(tiny_model, calls):
    model = tiny_model(attn_implementation="sdpa").train()
    pixels = torch.rand(3, 3, model.config.image_size, model.config.image_size)
    _, plain = loss_and_gradients(model, pixels)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    _, checkpointed = loss_and_gradients(model, pixels)
    assert len(calls) == 2 * model.config.num_hidden_layers
    assert all(map(torch.equal, plain, checkpointed))


def test_seeing_changes_neither_logits_nor_gradients(tiny_model, calls):
    model = tiny_model(attn_implementation="sdpa").train()
    pixels = torch.rand(3, 3, model.config.image_size, model.config.image_size)
    logits, plain = loss_and_gradients(model, pixels)
    asked, _ = loss_and_gradients(model, pixels, output_qkv=True, output_attentions=True)
    with record(model):
        recorded, found = loss_and_gradients(model, pixels)
    assert torch.equal(logits, asked)
    assert torch.equal(logits, recorded)
    assert all(map(torch.equal, found, plain))
    assert len(calls) == 3 * model.config.num_hidden_layers


def test_a_session_that_is_opened_before_the_backward_pass_does_not_disturb_checkpointing(tiny_model, calls):
    model = tiny_model(attn_implementation="sdpa").train()
    pixels = torch.rand(3, 3, model.config.image_size, model.config.image_size)
    _, plain = loss_and_gradients(model, pixels)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(pixels, labels=torch.zeros(3, dtype=torch.long)).loss
    with record(model):
        loss.backward()
    assert all(torch.equal(ours.grad, theirs) for ours, theirs in zip(model.parameters(), plain, strict=True))
