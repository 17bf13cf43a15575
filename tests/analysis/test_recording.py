"""`record` gives the tensors of the computation, of what was asked for alone, and changes nothing by one bit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.analysis import TokenLayout, record
from qkvit.analysis.recording import TENSORS

IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
VARIANTS = {
    "plain": {},
    "rotary, QK-norm, registers": {"position_embedding": "rope2d", "qk_norm": True, "num_register_tokens": 2},
    "distilled, LayerScale": {"use_distillation_token": True, "layer_scale_init_value": 0.5, "use_pre_norm": True},
}
MASK = torch.arange(16) < torch.tensor([[10], [16]])


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, uncompiled_flex) -> str:
    return request.param


@pytest.fixture(params=[None, MASK], ids=["unmasked", "masked"])
def mask(request) -> torch.Tensor | None:
    return request.param


# ---- the tensors of the computation


@pytest.mark.parametrize("variant", VARIANTS)
def test_queries_keys_values_and_maps_are_those_of_the_model_to_the_bit(
    tiny_model, pixels, implementation, variant, mask
):
    model = tiny_model(QKViTModel, **VARIANTS[variant])
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        # Maps of "eager" are those of its computation, in another order of the same products.
        expected = model(pixels, attention_mask=mask, output_qkv=True, output_attentions=implementation != "eager")
        with record(model, tensors=("query", "key", "value", "attention")) as recording:
            out = model(pixels, attention_mask=mask)
    assert torch.equal(out.last_hidden_state, expected.last_hidden_state)
    for layer in range(3):
        assert torch.equal(recording[layer].query, expected.queries[layer])
        assert torch.equal(recording[layer].key, expected.keys[layer])
        assert torch.equal(recording[layer].value, expected.values[layer])
        if implementation != "eager":
            assert torch.equal(recording[layer].attention, expected.attentions[layer])


def test_logits_are_the_same_to_the_bit_whatever_is_recorded(tiny_model, pixels, implementation, mask):
    model = tiny_model(position_embedding="rope2d")
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = model(pixels, attention_mask=mask).logits
        with record(model, tensors=TENSORS):
            assert torch.equal(model(pixels, attention_mask=mask).logits, expected)


def test_every_family_is_recorded_and_computes_the_same_to_the_bit(family, family_model, pixels):
    model = family_model(family)
    layout = TokenLayout.from_model(model)
    for implementation in ("eager", "sdpa"):
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            expected = model(pixels).last_hidden_state
            with record(model, tensors=TENSORS) as recording:
                found = model(pixels).last_hidden_state
        assert torch.equal(found, expected)
        assert recording.layers == (0, 1, 2)
        for layer in recording:
            seen = recording[layer]
            assert seen.query.shape == (2, 2, layout.num_tokens, 16)
            torch.testing.assert_close(
                seen.scaling * seen.query @ seen.key.transpose(-1, -2), seen.scores, rtol=1e-4, atol=1e-5
            )
            torch.testing.assert_close(seen.attention @ seen.value, seen.output, rtol=1e-4, atol=1e-5)


def test_scores_softmax_to_the_map_and_the_map_mixes_the_values_to_the_output(tiny_model, pixels, implementation, mask):
    model = tiny_model(QKViTModel)
    model.set_attn_implementation(implementation)
    with torch.no_grad(), record(model, tensors=TENSORS) as recording:
        model(pixels, attention_mask=mask)
    for layer in recording:
        seen = recording[layer]
        plain = seen.scaling * seen.query @ seen.key.transpose(-1, -2)
        shown = torch.ones(2, 1, 1, 17, dtype=torch.bool)
        if mask is not None:
            shown[..., 1:] = mask[:, None, None]
            kept = seen.attention_mask
            assert torch.equal(
                (kept if kept.dtype == torch.bool else kept >= 0).expand(2, 1, 17, 17), shown.expand(2, 1, 17, 17)
            )
        else:
            assert seen.attention_mask is None
        expected = plain.masked_fill(~shown, -torch.inf).softmax(-1)
        torch.testing.assert_close(seen.scores.softmax(-1), expected)
        torch.testing.assert_close(seen.attention, expected)
        torch.testing.assert_close(seen.attention @ seen.value, seen.output, rtol=1e-4, atol=1e-5)


def test_the_output_is_what_enters_the_output_projection(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    entered = []
    model.layers[1].attention.o_proj.register_forward_pre_hook(lambda module, args: entered.append(args[0]))
    with torch.no_grad(), record(model, 1, "output") as recording:
        model(pixels)
    assert torch.equal(recording[1].output.transpose(1, 2).flatten(2), entered[0])


# ---- what is asked for


@given(data=st.data())
def test_chosen_layers_heads_and_rows_are_those_of_the_whole(tiny_model, data):
    model = tiny_model(QKViTModel, num_attention_heads=4)
    pixels = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))

    def some(size: int):
        indices = st.lists(st.integers(-size, size - 1), min_size=1, unique_by=lambda index: index % size)
        one = st.integers(-size, size - 1)
        return data.draw(st.one_of(st.none(), one, indices, st.just(slice(1, None, 2)), indices.map(torch.tensor)))

    layers, heads, rows = some(3), some(4), some(17)
    names = data.draw(st.lists(st.sampled_from(TENSORS), min_size=1, unique=True))
    with torch.no_grad():
        with record(model, tensors=TENSORS) as whole:
            model(pixels)
        with record(model, layers, names, heads=heads, queries=rows) as recording:
            model(pixels)

    def at(tensor, index, dim):
        if index is None:
            return tensor
        every = torch.arange(tensor.shape[dim])[index].reshape(-1)
        return tensor.index_select(dim, every)

    assert sorted(recording.layers) == sorted(at(torch.arange(3), layers, 0).tolist())
    for layer in recording:
        assert recording[layer].names == tuple(names)
        for name in names:
            expected = at(getattr(whole[layer], name), heads, 1)
            expected = expected if name in ("key", "value") else at(expected, rows, 2)
            found = getattr(recording[layer], name)
            if name in ("scores", "attention"):  # other shapes of the same products round otherwise
                torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(found, expected)


class LargestResult(TorchDispatchMode):
    """The number of elements of the largest tensor that any operation makes."""

    largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.largest = max(self.largest, *sizes, 0)
        return result


@pytest.mark.parametrize("asked", [{}, {"queries": 0, "tensors": ("scores", "attention")}])
def test_a_row_of_a_map_does_not_cost_the_map(tiny_model, asked):
    model = tiny_model(QKViTModel, image_size=128)  # 1025 tokens
    with torch.no_grad(), record(model, **asked), LargestResult() as mode:
        model(torch.rand(1, 3, 128, 128))
    assert 0 < mode.largest < 1025**2 / 4


def test_scores_of_sixteen_bits_do_not_overflow(tiny_model, pixels):
    model = tiny_model(QKViTModel).half()
    with torch.no_grad():
        for layer in model.layers:
            layer.attention.q_proj.weight.mul_(1000)
            layer.attention.k_proj.weight.mul_(1000)
        with record(model, 0, ("scores", "attention")) as recording:
            model(pixels.half())
    assert recording[0].scores.dtype == torch.float32
    assert recording[0].scores.abs().max() > torch.finfo(torch.float16).max
    assert recording[0].attention.dtype == torch.float16
    torch.testing.assert_close(recording[0].attention.sum(-1), torch.ones(2, 2, 17).half(), rtol=0, atol=2e-3)


def test_a_function_reduces_each_tensor_on_the_fly(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    with torch.no_grad():
        with record(model, tensors=("query", "attention")) as whole:
            model(pixels)
        with record(model, tensors=("query", "attention"), reduce=lambda tensor: tensor.mean(0)) as reduced:
            model(pixels)
        with record(model, tensors=("query", "attention"), reduce={"attention": lambda rows: rows.sum().item()}) as one:
            model(pixels)
    for layer in whole:
        assert torch.equal(reduced[layer].query, whole[layer].query.mean(0))
        assert torch.equal(reduced[layer].attention, whole[layer].attention.mean(0))
        assert torch.equal(one[layer].query, whole[layer].query)
        assert one[layer].attention == whole[layer].attention.sum().item()


def test_the_last_forward_pass_is_kept_or_all_of_them(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    with torch.no_grad():
        expected = [model(images[None], output_qkv=True).queries for images in pixels]
        with record(model) as last, record(model, keep="all") as every:
            for images in pixels:
                model(images[None])
    for layer in range(3):
        assert torch.equal(last[layer].query, expected[1][layer])
        assert len(last.calls[layer]) == 1
        assert [
            torch.equal(call.query, queries[layer]) for call, queries in zip(every.calls[layer], expected, strict=True)
        ]
        assert torch.equal(every.calls[layer][0].query, expected[0][layer])


def test_statistics_under_dropout_are_those_of_the_map(tiny_model, pixels):
    """The output is then not that of the map, and is computed again."""
    model = tiny_model(QKViTModel, attention_probs_dropout_prob=0.5).train()
    layout, found = TokenLayout.from_model(model, 16), []
    for tensors in (("query", "key", "value"), ("query", "key", "value", "output")):
        torch.manual_seed(0)
        with torch.no_grad(), record(model, tensors=tensors) as recording:
            model(pixels)
        found.append(recording[0].statistics(layout, output_projection=model.layers[0].attention.o_proj))
    torch.testing.assert_close(found[0].output_share, found[1].output_share)
    torch.testing.assert_close(found[0].output_norm, found[1].output_norm)


def test_a_copy_on_the_cpu_is_given(tiny_model, pixels):
    model = tiny_model(QKViTModel)
    with torch.no_grad(), record(model, device="cpu") as recording:
        model(pixels)
    assert recording[0].query.device.type == "cpu"


def test_the_mask_goes_where_the_tensors_go(tiny_model, pixels, implementation, mask):
    model = tiny_model(QKViTModel)
    model.set_attn_implementation(implementation)
    with torch.no_grad(), record(model, device="meta") as recording:
        model(pixels, attention_mask=mask)
    assert recording[0].query.device.type == "meta"
    assert mask is None or recording[0].attention_mask.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_copies_from_a_gpu_are_complete_when_they_are_read(tiny_model):
    model = tiny_model(QKViTModel, image_size=128).cuda()
    pixels = torch.rand(8, 3, 128, 128, device="cuda")
    with torch.no_grad(), record(model, keep="all") as here, record(model, device="cpu", keep="all") as copied:
        for _ in range(4):
            model(pixels)
    for layer in here:
        for call, copy in zip(here.calls[layer], copied.calls[layer], strict=True):
            assert torch.equal(call.query.cpu(), copy.query)


# ---- gradients


def test_without_detaching_gradients_reach_queries_keys_values_and_output(tiny_model, pixels):
    model = tiny_model()
    names = ("query", "key", "value", "output")
    with record(model, tensors=names, detach=False) as recording:
        logits = model(pixels).logits
    tensors = [getattr(recording[1], name) for name in names]
    found = torch.autograd.grad(logits[:, 0].sum(), tensors, retain_graph=True)
    model.set_attn_implementation("eager")
    out = model(pixels, output_qkv=True)
    expected = torch.autograd.grad(out.logits[:, 0].sum(), [out.queries[1], out.keys[1], out.values[1]])
    for gradient, other in zip(found, expected, strict=False):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)
    assert found[3].abs().sum() > 0
    assert record_of(model, pixels).query.grad_fn is None


def record_of(model, pixels):
    with record(model, 0) as recording:
        model(pixels)
    return recording[0]


def test_a_loss_of_maps_reaches_the_weights_and_leaves_the_logits_alone(tiny_model, pixels):
    model = tiny_model()
    expected = model(pixels).logits
    with record(model, tensors="attention", detach=False) as recording:
        assert torch.equal(model(pixels).logits, expected)
    recording[2].attention[..., 0].sum().backward()
    assert model.qkvit.layers[2].attention.q_proj.weight.grad.abs().sum() > 0


def test_explicit_maps_have_the_gradients_of_the_eager_computation(tiny_model, pixels):
    model = tiny_model()
    plain = model(pixels).logits
    with record(model, 1, ("scores", "attention"), detach=False, explicit=True) as recording:
        logits = model(pixels).logits
    torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-5)
    on_scores, on_map = torch.autograd.grad(logits[:, 0].sum(), [recording[1].scores, recording[1].attention])
    model.set_attn_implementation("eager")
    out = model(pixels, output_attentions=True)
    (expected,) = torch.autograd.grad(out.logits[:, 0].sum(), [out.attentions[1]])
    torch.testing.assert_close(on_map, expected, rtol=1e-3, atol=1e-6)
    weights = recording[1].attention
    through_softmax = weights * (on_map - (weights * on_map).sum(-1, keepdim=True))
    torch.testing.assert_close(on_scores, through_softmax, rtol=1e-3, atol=1e-6)


def test_training_draws_the_same_dropout_with_a_record(tiny_model, pixels):
    model = tiny_model(attention_probs_dropout_prob=0.5, hidden_dropout_prob=0.5).train()
    torch.manual_seed(3)
    expected = model(pixels).logits
    torch.manual_seed(3)
    with record(model, tensors=TENSORS) as recording:
        assert torch.equal(model(pixels).logits, expected)
    torch.testing.assert_close(recording[0].attention.sum(-1), torch.ones(2, 2, 17))


# ---- errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": 3}, "layers=3 asks for layer 3 of a model with layers 0 to 2"),
        ({"layers": [0, -4]}, "asks for layer -4"),
        ({"layers": []}, "layers=[] names no layer"),
        ({"layers": 1.5}, "layers=1.5"),
        ({"layers": True}, "layers=True"),
        ({"tensors": ("queries",)}, "'queries' is not known"),
        ({"tensors": ()}, "tensors is empty"),
        ({"heads": []}, "heads=[] selects nothing"),
        ({"heads": "first"}, "heads='first'"),
        ({"queries": [0, 0]}, "names an index twice"),
        ({"keep": "first"}, "keep='first'"),
        ({"explicit": True}, "pass detach=False"),
        ({"reduce": {"scores": torch.mean}}, "reduce has 'scores', which is not recorded"),
        ({"reduce": 3}, "reduce['query'] is a int"),
    ],
)
def test_what_cannot_be_recorded_is_refused_at_once(tiny_model, raises_sentence, arguments, words):
    with raises_sentence(ValueError, words):
        record(tiny_model(QKViTModel), **arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"heads": 2}, "heads=2 is beyond the 2 that there are"),
        ({"queries": [0, 17]}, "queries=[0, 17] is beyond the 17"),
        ({"queries": [0, -17]}, "queries=[0, -17] names an index twice"),
        ({"queries": slice(20, 30)}, "selects none of 17"),
        ({"heads": [True, False, True]}, "heads has 3 booleans for 2"),
    ],
)
def test_heads_and_rows_that_do_not_exist_are_refused_in_the_forward_pass(
    tiny_model, pixels, raises_sentence, arguments, words
):
    model = tiny_model(QKViTModel)
    with raises_sentence(ValueError, words), record(model, **arguments):
        model(pixels)
    assert model.config._attn_implementation == "sdpa"


def test_a_record_says_what_it_does_not_have(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel)
    with record(model, [0, 1]) as recording:
        with raises_sentence(ValueError, "layer 0 of QKViTModel was not reached"):
            recording[0]
        model(pixels)
    with raises_sentence(ValueError, "layer 2 was not asked for"):
        recording[2]
    with raises_sentence(ValueError, "layer 7 of a model with layers 0 to 2"):
        recording[7]
    with raises_sentence(ValueError, "recording[slice(0, 2, None)] asks for several layers"):
        recording[0:2]
    with raises_sentence(AttributeError, "the scores of layer 1 was not recorded"):
        _ = recording[1].scores
    assert not hasattr(recording[1], "nothing")


def test_a_model_may_be_loaded_with_weights_after_it_was_recorded(tiny_model, pixels):
    model = tiny_model(QKViTForImageClassification)
    with record(model) as recording:
        model(pixels)
    kept = recording[0].query.clone()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(recording[0].query, kept)
