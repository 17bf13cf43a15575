"""The attention product: every implementation against the formula in float64, and what is true for all weights.

Shapes: B batch, H heads, N tokens, D width of a head, C width of the model.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AttentionInterface
from transformers.masking_utils import create_bidirectional_mask

from qkvit.modeling.attention_qkvit import QKViTAttention, attention_map, eager_attention_forward
from qkvit.modeling.positions_qkvit import rotary_2d

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
GRID = (3, 4)
VARIANTS = {
    "plain": {},
    "no biases": dict.fromkeys(("query_bias", "key_bias", "value_bias", "output_bias"), False),
    "QK-norm": {"qk_norm": True},
    "QK-RMSNorm": {"qk_norm": True, "norm_type": "rmsnorm"},
    "rotary": {"position_embedding": "rope2d"},
    "rotary, QK-norm, wide heads": {"position_embedding": "rope2d", "qk_norm": True, "head_dim": 24},
    "five narrow heads": {"num_attention_heads": 5, "head_dim": 4},
}


def make_attention(tiny_config, implementation="sdpa", **fields) -> QKViTAttention:
    """One attention module with random biases and norms, so that a test sees what is left out."""
    torch.manual_seed(0)
    attention = QKViTAttention(tiny_config(**fields, attn_implementation=implementation), layer_idx=0).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in attention.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return attention


def turned(head: torch.Tensor, grid: tuple[int, int], theta: float) -> torch.Tensor:
    """Rotary positions in float64, pair by pair: (N, D), the patches are the last tokens."""
    rows, columns = grid
    head = head.clone()
    width = head.shape[-1]
    first = head.shape[0] - rows * columns
    for row in range(rows):
        for column in range(columns):
            token = first + row * columns + column
            centre = (2 * (row + 0.5) / rows - 1, 2 * (column + 0.5) / columns - 1)
            for pair in range(width // 2):
                axis, frequency = divmod(pair, width // 4)
                angle = 2 * math.pi * centre[axis] * theta ** (-4 * frequency / width)
                a, b = head[token, pair].item(), head[token, pair + width // 2].item()
                head[token, pair] = a * math.cos(angle) - b * math.sin(angle)
                head[token, pair + width // 2] = b * math.cos(angle) + a * math.sin(angle)
    return head


def normalised(head: torch.Tensor, norm: torch.nn.Module, kind: str, eps: float) -> torch.Tensor:
    """LayerNorm or RMSNorm in float64, from their formulas."""
    if kind == "layernorm":
        head = head - head.mean(-1, keepdim=True)
    head = head / (head.pow(2).mean(-1, keepdim=True) + eps).sqrt() * norm.weight.double()
    return head + norm.bias.double() if kind == "layernorm" else head


def reference(attention: QKViTAttention, tokens: torch.Tensor, seen: torch.Tensor | None) -> dict[str, torch.Tensor]:
    """softmax(Q K^T / sqrt(D)) V in float64, head by head, from the parameters and nothing of the code under test."""
    config, tokens = attention.config, tokens.double()

    def project(layer: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        product = inputs @ layer.weight.double().T
        return product if layer.bias is None else product + layer.bias.double()

    all_heads = {"query": [], "key": [], "value": [], "map": []}
    outputs = []
    for image, sample in enumerate(tokens):
        heads = []
        for index in range(config.num_attention_heads):
            columns = slice(index * config.head_dim, (index + 1) * config.head_dim)
            q, k, v = (
                project(layer, sample)[:, columns] for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            if config.qk_norm:
                q = normalised(q, attention.q_norm, config.norm_type, config.layer_norm_eps)
                k = normalised(k, attention.k_norm, config.norm_type, config.layer_norm_eps)
            if config.position_embedding == "rope2d":
                q, k = turned(q, GRID, config.rope_theta), turned(k, GRID, config.rope_theta)
            weights = (q @ k.T / math.sqrt(config.head_dim)).exp()
            if seen is not None:
                weights = weights * seen[image]
            weights = weights / weights.sum(-1, keepdim=True)
            heads.append(weights @ v)
            for name, tensor in zip(all_heads, (q, k, v, weights), strict=True):
                all_heads[name].append(tensor)
        outputs.append(project(attention.o_proj, torch.cat(heads, dim=-1)))
    shape = (len(tokens), config.num_attention_heads)
    return {"output": torch.stack(outputs)} | {
        name: torch.stack(tensors).unflatten(0, shape) for name, tensors in all_heads.items()
    }


def run(attention: QKViTAttention, tokens: torch.Tensor, seen: torch.Tensor | None):
    rotation = None
    if attention.config.position_embedding == "rope2d":
        rotation = rotary_2d(attention.head_dim, GRID, tokens.device, attention.config.rope_theta)
    mask = create_bidirectional_mask(attention.config, tokens, seen)
    with torch.no_grad():
        return attention(tokens, mask, rotation, seen, output_attentions=True)


@pytest.fixture
def tokens() -> torch.Tensor:
    """(B, N, C): 2 tokens before the 3 x 4 patches."""
    return torch.randn(2, 14, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(params=["every token seen", "some hidden"])
def seen(request) -> torch.Tensor | None:
    """(B, N): the last five tokens of the first image, and one of the second, are hidden."""
    if request.param == "every token seen":
        return None
    mask = torch.ones(2, 14, dtype=torch.bool)
    mask[0, 9:] = False
    mask[1, 4] = False
    return mask


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.usefixtures("uncompiled_flex")
def test_every_implementation_computes_the_formula(tiny_config, tokens, seen, implementation, variant):
    attention = make_attention(tiny_config, implementation, **VARIANTS[variant])
    expected = reference(attention, tokens, seen)
    output, weights, query, key, value = run(attention, tokens, seen)
    found = {"output": output, "map": weights, "query": query, "key": key, "value": value}
    for name, tensor in found.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=2e-5, msg=name)
    if seen is not None:
        assert (weights.transpose(-1, -2)[~seen[:, None].expand(-1, weights.shape[1], -1)] == 0).all()


@pytest.mark.slow
def test_compiled_flex_attention_computes_the_formula(tiny_config, tokens):
    seen = torch.arange(14) < torch.tensor([[9], [14]])
    attention = make_attention(tiny_config, "flex_attention", qk_norm=True)
    output, weights, *_ = run(attention, tokens, seen)
    expected = reference(attention, tokens, seen)
    torch.testing.assert_close(output.double(), expected["output"], rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(weights.double(), expected["map"], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("version", ["flash_attention_2", "flash_attention_3"])
def test_flash_attention_is_given_what_it_takes(tiny_config, tokens, seen, flash_attention, version):
    """The package itself needs a GPU: here is what QKViT and transformers hand to it, padding included."""
    expected = run(make_attention(tiny_config, "sdpa", qk_norm=True), tokens, seen)
    attention = make_attention(tiny_config, "sdpa", qk_norm=True)
    attention.config._attn_implementation = version
    output, weights, *_ = run(attention, tokens, seen)
    assert flash_attention == [version]
    visible = slice(None) if seen is None else seen
    torch.testing.assert_close(output[visible], expected[0][visible])
    torch.testing.assert_close(weights, expected[1])


def test_the_map_is_right_where_an_implementation_gives_something_else_in_its_place(tiny_config, tokens):
    """flex_attention on a GPU gives the log-sum-exp, (B, H, N), where others give the map."""

    def with_lse(module, query, key, value, attention_mask, scaling, **kwargs):
        output, _ = eager_attention_forward(module, query, key, value, attention_mask, scaling)
        return output, (scaling * query @ key.transpose(-1, -2)).logsumexp(-1)

    AttentionInterface.register("with_lse", with_lse)
    expected = run(make_attention(tiny_config, "eager"), tokens, None)[1]
    torch.testing.assert_close(run(make_attention(tiny_config, "with_lse"), tokens, None)[1], expected)


def test_the_map_beside_is_bit_equal_to_the_map_of_the_eager_computation(tiny_config, tokens, seen):
    maps = [run(make_attention(tiny_config, implementation), tokens, seen)[1] for implementation in ("eager", "sdpa")]
    assert torch.equal(*maps)


def test_no_map_is_given_where_none_was_asked_for(tiny_config, tokens):
    for implementation in ("eager", "sdpa"):
        assert make_attention(tiny_config, implementation)(tokens)[1] is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_map_in_half_precision_is_that_of_float32_to_its_precision(dtype):
    query, key = torch.randn(2, 1, 2, 9, 8).unbind()
    exact = attention_map(query.double(), key.double(), scaling=0.3)
    found = attention_map(query.to(dtype), key.to(dtype), scaling=0.3)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), exact, rtol=0.05, atol=0.01)


def test_a_map_beside_has_a_shape_on_the_meta_device():
    query = torch.empty(1, 2, 4, 8, device="meta")
    assert attention_map(query, query, 1.0).shape == (1, 2, 4, 4)


def test_a_map_has_no_nan_when_every_token_is_hidden():
    query, key = torch.randn(2, 1, 1, 3, 4).unbind()
    assert attention_map(query, key, 0.5, token_mask=torch.zeros(1, 3, dtype=torch.bool)).isfinite().all()


# ---- what is true of attention, whatever the weights

seeds = st.integers(0, 2**31 - 1)


def random_qkv(seed: int, dtype=torch.float64) -> tuple[torch.Tensor, ...]:
    """Three tensors (B, H, N, D)."""
    return torch.randn(3, 2, 2, 6, 8, dtype=dtype, generator=torch.Generator().manual_seed(seed)).unbind()


def attend(query, key, value) -> torch.Tensor:
    return eager_attention_forward(torch.nn.Module(), query, key, value, None, scaling=8**-0.5)[0].double()


@given(seeds, st.floats(-20, 20))
def test_adding_a_vector_to_every_key_changes_nothing(seed, size):
    query, key, value = random_qkv(seed)
    shift = size * torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    torch.testing.assert_close(attend(query, key + shift, value), attend(query, key, value), rtol=1e-5, atol=1e-6)


@given(seeds)
def test_permuting_keys_with_their_values_changes_nothing(seed):
    query, key, value = random_qkv(seed)
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(attend(query, key[:, :, order], value[:, :, order]), attend(query, key, value))


@given(seeds)
def test_an_invertible_matrix_between_query_and_key_changes_nothing(seed):
    query, key, value = random_qkv(seed)
    matrix, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))
    matrix = matrix * torch.linspace(0.5, 2, 8, dtype=torch.float64)
    turned = attend(query @ matrix, key @ torch.linalg.inv(matrix).T, value)
    torch.testing.assert_close(turned, attend(query, key, value), rtol=1e-5, atol=1e-6)


@given(seeds)
def test_the_output_lies_within_the_range_of_the_values(seed):
    query, key, value = random_qkv(seed)
    output = attend(query, key, value).transpose(1, 2)  # (B, H, N, D)
    assert (output <= value.amax(2, keepdim=True) + 1e-6).all()
    assert (output >= value.amin(2, keepdim=True) - 1e-6).all()


@given(seeds)
def test_zero_queries_and_zero_keys_give_the_same_uniform_attention(seed):
    query, key, _ = random_qkv(seed, torch.float32)
    uniform = torch.full((2, 2, 6, 6), 1 / 6)
    torch.testing.assert_close(attention_map(torch.zeros_like(query), key, 1.0), uniform)
    torch.testing.assert_close(attention_map(query, torch.zeros_like(key), 1.0), uniform)


@given(seeds, st.sets(st.integers(1, 5), max_size=4))
def test_a_hidden_token_is_as_one_that_is_not_there(seed, hidden):
    query, key, _ = random_qkv(seed, torch.float32)
    seen = torch.ones(2, 6, dtype=torch.bool)
    seen[:, list(hidden)] = False
    weights = attention_map(query, key, 0.5, seen)
    left = [token for token in range(6) if token not in hidden]
    assert (weights[..., list(hidden)] == 0).all()
    torch.testing.assert_close(weights[..., left], attention_map(query, key[:, :, left], 0.5))


def test_a_key_bias_changes_nothing_and_gets_no_gradient(tiny_config, tokens):
    attention = make_attention(tiny_config, "sdpa").double()
    before = attention(tokens.double())[0]
    before.square().sum().backward()
    assert attention.k_proj.bias.grad.abs().max() < 1e-10 * attention.q_proj.bias.grad.abs().max()
    with torch.no_grad():
        attention.k_proj.bias.add_(3.0)
        torch.testing.assert_close(attention(tokens.double())[0], before)


# ---- dropout


def test_attention_dropout_is_of_training_alone_and_leaves_the_returned_map_whole(tiny_config, tokens):
    for implementation in ("eager", "sdpa"):
        attention = make_attention(tiny_config, implementation, attention_probs_dropout_prob=0.5)
        quiet, weights, *_ = attention(tokens, output_attentions=True)
        assert torch.equal(quiet, attention(tokens)[0])
        attention.train()
        noisy, weights_in_training, *_ = attention(tokens, output_attentions=True)
        assert not torch.allclose(noisy, quiet)
        assert torch.equal(weights_in_training, weights)


def test_the_map_of_16_bit_queries_is_finite_where_their_scores_overflow():
    # The score, 200 * 200 * 8 * 8^-0.5 = 113,137, is beyond float16.
    query = torch.full((1, 1, 2, 8), 200.0, dtype=torch.float16)
    key = torch.stack([query[0, 0, 0], -query[0, 0, 0]])[None, None]
    assert torch.equal(attention_map(query, key, scaling=8**-0.5)[0, 0, 0], torch.tensor([1.0, 0.0]).half())


def test_the_map_of_bfloat16_queries_is_that_of_float64():
    query, key, _ = random_qkv(0)
    query, key = (8 * query).bfloat16(), key.bfloat16()
    exact = (query.double() @ key.double().mT * 8**-0.5).softmax(-1)
    torch.testing.assert_close(attention_map(query, key, 8**-0.5).double(), exact, rtol=2**-8, atol=1e-6)


def test_the_map_under_autocast_is_computed_in_float32():
    query, key, _ = random_qkv(0, torch.float32)
    expected = attention_map(8 * query, key, 8**-0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attention_map(8 * query, key, 8**-0.5), expected)
