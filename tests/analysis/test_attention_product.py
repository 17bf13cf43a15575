"""The product step by step equals scaled dot-product attention, for every kind of mask that a backend may be given."""

import pytest
import torch
from torch import nn

from qkvit.analysis.attention_product import AttentionCall

BATCH, HEADS, TOKENS, WIDTH = 2, 4, 6, 8


def call_of(mask=None, key_heads: int = HEADS, **arguments) -> AttentionCall:
    query = torch.randn(BATCH, HEADS, TOKENS, WIDTH)
    key, value = torch.randn(2, BATCH, key_heads, TOKENS, WIDTH)
    return AttentionCall(nn.Identity().eval(), query, key, value, mask, arguments)


def output_of(call: AttentionCall) -> torch.Tensor:
    return call.output(call.weights(call.masked(call.scores())))


def expected_of(call: AttentionCall, mask=None, **arguments) -> torch.Tensor:
    return nn.functional.scaled_dot_product_attention(
        call.query, call.key, call.value, attn_mask=mask, scale=call.scaling, **arguments
    )


SEEN = torch.arange(TOKENS) < torch.tensor([[4], [6]])  # (B, M)
MASKS = {
    "none": (None, None),
    "boolean": (SEEN[:, None, None], SEEN[:, None, None]),
    "added": (torch.where(SEEN, 0, -1e30)[:, None, None], SEEN[:, None, None]),
    "of FlashAttention": (SEEN.int(), SEEN[:, None, None]),
    "of each head and row": (torch.eye(TOKENS).expand(BATCH, HEADS, -1, -1),) * 2,
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_every_mask_hides_what_it_hides_from_the_fused_product(mask, scaling):
    given, plain = MASKS[mask]
    call = call_of(given, scaling=scaling)
    torch.testing.assert_close(output_of(call), expected_of(call, plain))


def test_a_block_mask_hides_what_it_hides_from_the_fused_product():
    from torch.nn.attention.flex_attention import create_block_mask

    block = create_block_mask(lambda b, h, q, k: (k <= q) & (k < 4 + 2 * b), BATCH, None, TOKENS, TOKENS, device="cpu")
    call = call_of(block)
    torch.testing.assert_close(output_of(call), expected_of(call, SEEN[:, None, None] & torch.ones(6, 6).tril().bool()))


def test_causal_attention_grouped_heads_and_a_position_bias_are_followed():
    causal = call_of(is_causal=True)
    torch.testing.assert_close(output_of(causal), expected_of(causal, is_causal=True))
    grouped = call_of(key_heads=2)
    torch.testing.assert_close(output_of(grouped), expected_of(grouped, enable_gqa=True))
    bias = torch.randn(1, HEADS, TOKENS, TOKENS)
    biased = call_of(position_bias=bias)
    torch.testing.assert_close(output_of(biased), expected_of(biased, bias))
    both = call_of(SEEN[:, None, None], position_bias=bias)
    torch.testing.assert_close(output_of(both), expected_of(both, bias.masked_fill(~SEEN[:, None, None], -torch.inf)))


def test_some_heads_and_rows_are_those_of_the_whole():
    heads, rows = torch.tensor([2, 0]), torch.tensor([5, 1, 3])
    for mask in MASKS:
        call = call_of(MASKS[mask][0], position_bias=torch.randn(1, HEADS, TOKENS, TOKENS))
        part = call.masked(call.scores(heads, rows), heads, rows)
        torch.testing.assert_close(part, call.masked(call.scores())[:, heads][:, :, rows])


@pytest.mark.parametrize("name", ["softcap", "s_aux", "sliding_window", "cu_seq_lens_q", "cu_seq_lens_k"])
def test_a_product_that_is_not_known_is_refused(raises_sentence, name):
    with raises_sentence(ValueError, f"computes attention with {name}"):
        call_of(**{name: 30.0}).scores()


def test_a_call_says_whether_its_map_is_that_of_query_and_key():
    assert call_of(SEEN, position_bias=torch.zeros(1), softcap=None).other_map is None
    assert "with softcap" in call_of(softcap=30.0).other_map
    call = call_of()
    call.edited = ("output",)  # after the map
    assert call.other_map is None
    call.edited = ("scores", "attention", "output")
    assert "the scores and attention," in call.other_map
