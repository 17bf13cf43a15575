"""`output_attentions` and `output_qkv`: what they give, and that asking changes nothing else by one bit."""

import contextlib

import pytest
import torch

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel

MODELS = (QKViTModel, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTBackbone)
IMPLEMENTATIONS = ("eager", "sdpa", "flex_attention")
ASKED = {
    "all": (True, True),
    "maps of all": (True, False),
    "Q, K, V of all": (None, True),
    "one layer": (1, 1),
    "the last": (-1, -1),
    "a list": ([0, -1], [-2]),
}
VARIANTS = {
    "plain": {},
    "rotary, QK-norm, registers": {"position_embedding": "rope2d", "qk_norm": True, "num_register_tokens": 2},
    "sine, RMSNorm, SwiGLU": {"position_embedding": "sincos2d", "norm_type": "rmsnorm", "mlp_type": "swiglu"},
    "distilled, LayerScale": {"use_distillation_token": True, "layer_scale_init_value": 0.5, "use_pre_norm": True},
    "attention pooling": {"pooling": "attention", "use_class_token": False, "position_embedding": "none"},
}
# What is asked for and what the model is like do not meet: each of both once.
EACH = [*((variant, "all") for variant in VARIANTS), *(("plain", asked) for asked in ASKED if asked != "all")]
MASK = torch.arange(16) < torch.tensor([[10], [16]])


@pytest.fixture(params=IMPLEMENTATIONS)
def implementation(request, uncompiled_flex) -> str:
    return request.param


def plain_output(model: torch.nn.Module, pixels: torch.Tensor, **arguments) -> torch.Tensor:
    """The first tensor of the model's output, with the same random numbers every time."""
    torch.manual_seed(5)
    first = model(pixels, **arguments).to_tuple()[0]
    return first[0] if isinstance(first, tuple) else first


def asking(asked: str) -> dict:
    maps, qkv = ASKED[asked]
    return {"output_attentions": maps, "output_qkv": qkv}


# ---- what is given


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("asked", ASKED)
def test_layers_that_were_asked_for_are_given_and_the_others_are_none(tiny_model, pixels, model_class, asked):
    out = tiny_model(model_class)(pixels, **asking(asked))
    maps = {"Q, K, V of all": set(), "one layer": {1}, "the last": {2}, "a list": {0, 2}}.get(asked, {0, 1, 2})
    qkv = {"maps of all": set(), "one layer": {1}, "the last": {2}, "a list": {1}}.get(asked, {0, 1, 2})
    for names, layers, shape in (
        (["attentions"], maps, (2, 2, 17, 17)),
        (["queries", "keys", "values"], qkv, (2, 2, 17, 16)),
    ):
        for name in names:
            assert (name in out) == bool(layers)
            for layer, tensor in enumerate(out[name] if layers else ()):
                assert (tensor is not None) == (layer in layers)
                assert tensor is None or tensor.shape == shape


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("masked", [False, True])
def test_the_map_of_the_returned_queries_and_keys_is_the_returned_map(
    tiny_model, pixels, implementation, variant, masked
):
    model = tiny_model(QKViTModel, **VARIANTS[variant])
    model.set_attn_implementation(implementation)
    prefix = model.config.num_prefix_tokens
    with torch.no_grad():
        out = model(pixels, attention_mask=MASK if masked else None, output_attentions=True, output_qkv=True)
    hidden = torch.cat([torch.zeros(2, prefix, dtype=torch.bool), ~MASK], dim=1)
    for weights, query, key in zip(out.attentions, out.queries, out.keys, strict=True):
        scores = model.config.head_dim**-0.5 * query @ key.transpose(-1, -2)
        if masked:
            scores = scores.masked_fill(hidden[:, None, None], -torch.inf)
        torch.testing.assert_close(scores.softmax(-1), weights)
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_map_times_the_values_through_the_output_projection_is_the_output_of_attention(
    tiny_model, pixels, implementation, variant
):
    model = tiny_model(QKViTModel, **VARIANTS[variant])
    model.set_attn_implementation(implementation)
    outputs = []
    for layer in model.layers:
        layer.attention.register_forward_hook(lambda module, args, result: outputs.append(result[0]))
    with torch.no_grad():
        out = model(pixels, output_attentions=True, output_qkv=True)
        for layer, weights, value, output in zip(model.layers, out.attentions, out.values, outputs, strict=True):
            mixed = (weights @ value).transpose(1, 2).flatten(2)
            torch.testing.assert_close(layer.attention.o_proj(mixed), output, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_implementation_gives_the_same_output(tiny_model, pixels, variant, uncompiled_flex):
    model = tiny_model(**VARIANTS[variant])
    found = []
    for implementation in IMPLEMENTATIONS:
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            found.append([model(pixels).logits, model(pixels, attention_mask=MASK).logits])
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(*found[0], atol=1e-3), "the mask matters"


def test_the_default_is_that_of_the_configuration(tiny_model, pixels):
    model = tiny_model(output_attentions=[-1])
    out = model(pixels)
    assert [weights is None for weights in out.attentions] == [True, True, False]
    assert "attentions" not in model(pixels, output_attentions=False)
    assert all(weights is not None for weights in model(pixels, output_attentions=True).attentions)


def test_queries_keys_and_values_carry_gradients_and_maps_beside_do_not(tiny_model, pixels):
    model = tiny_model()
    out = model(pixels, output_attentions=True, output_qkv=True)
    for tensor in (out.queries[1], out.keys[1], out.values[1]):
        gradient = torch.autograd.grad(out.logits[0, 0], tensor, retain_graph=True)[0]
        assert gradient.abs().sum() > 0
    assert not any(weights.requires_grad for weights in out.attentions)


def test_the_model_stays_on_its_implementation(tiny_model, pixels, implementation):
    model = tiny_model()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        model(pixels, output_attentions=True, output_qkv=True)
    assert model.config._attn_implementation == implementation


def test_hidden_states_are_given_beside_maps(tiny_model, pixels):
    out = tiny_model(QKViTModel)(pixels, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in out.hidden_states] == [(2, 17, 32)] * 4
    normalised = tiny_model(QKViTModel).norm(out.hidden_states[-1])
    assert torch.equal(normalised, out.last_hidden_state)


# ---- asking changes nothing by one bit


@pytest.mark.parametrize(("variant", "asked"), EACH)
def test_asking_changes_nothing_in_evaluation(tiny_model, pixels, implementation, variant, asked):
    model = tiny_model(**VARIANTS[variant])
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        for mask in (None, MASK):
            expected = plain_output(model, pixels, attention_mask=mask)
            assert torch.equal(plain_output(model, pixels, attention_mask=mask, **asking(asked)), expected)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("asked", ASKED)
def test_asking_changes_nothing_whatever_the_head(tiny_model, pixels, model_class, asked):
    model = tiny_model(model_class)
    assert torch.equal(plain_output(model, pixels, **asking(asked)), plain_output(model, pixels))


RANDOM = {"hidden_dropout_prob": 0.2, "drop_path_rate": 0.3, "patch_drop_rate": 0.25}


@pytest.mark.parametrize("asked", ASKED)
def test_asking_changes_nothing_in_training_with_dropout(tiny_model, pixels, implementation, asked):
    flex = implementation == "flex_attention"  # it has no dropout, and on a CPU no gradients
    model = tiny_model(**RANDOM, attention_probs_dropout_prob=0.0 if flex else 0.2).train()
    model.set_attn_implementation(implementation)
    with torch.no_grad() if flex else contextlib.nullcontext():
        expected = plain_output(model, pixels)
        assert torch.equal(plain_output(model, pixels, **asking(asked)), expected)
        assert not torch.equal(model(pixels).logits, expected), "there is dropout"


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_asking_changes_no_gradient(tiny_model, pixels, implementation, checkpointing):
    model = tiny_model(**RANDOM, attention_probs_dropout_prob=0.2).train()
    model.set_attn_implementation(implementation)
    if checkpointing:
        model.gradient_checkpointing_enable()
    gradients = []
    for arguments in ({}, asking("all"), asking("a list")):
        model.zero_grad()
        torch.manual_seed(5)
        model(pixels, labels=torch.tensor([1, 3]), **arguments).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for other in gradients[1:]:
        assert all(torch.equal(*pair) for pair in zip(gradients[0], other, strict=True))


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_asking_changes_nothing_with_gradient_checkpointing(tiny_model, pixels, implementation, asked):
    model = tiny_model(**RANDOM).train()
    model.set_attn_implementation(implementation)
    expected = plain_output(model, pixels)
    model.gradient_checkpointing_enable()
    assert torch.equal(plain_output(model, pixels), expected)
    assert torch.equal(plain_output(model, pixels, **asking(asked)), expected)


@pytest.mark.parametrize(("variant", "asked"), EACH)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_asking_changes_nothing_under_autocast(tiny_model, pixels, implementation, variant, asked):
    model = tiny_model(**VARIANTS[variant])
    model.set_attn_implementation(implementation)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain_output(model, pixels)
        assert torch.equal(plain_output(model, pixels, **asking(asked)), expected)
    torch.testing.assert_close(expected.float(), plain_output(model, pixels), rtol=0.1, atol=0.3)


@pytest.mark.parametrize(("variant", "asked"), EACH)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_asking_changes_nothing_in_half_precision(tiny_model, pixels, implementation, variant, dtype, asked):
    model = tiny_model(**VARIANTS[variant]).to(dtype)
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        out = model(pixels, **asking(asked))
        assert torch.equal(plain_output(model, pixels, **asking(asked)), plain_output(model, pixels))
    for name in ("attentions", "queries", "keys", "values"):
        assert all(tensor.dtype == dtype for tensor in out.get(name, ()) if tensor is not None)


# ---- masks


@pytest.mark.parametrize("pooling", ["class", "mean", "class_mean", "attention"])
def test_hidden_pixels_do_not_matter(tiny_model, pixels, implementation, pooling):
    model = tiny_model(pooling=pooling, position_embedding="rope2d", num_register_tokens=1)
    model.set_attn_implementation(implementation)
    hidden = (~MASK).reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    with torch.no_grad():
        first = model(pixels, attention_mask=MASK, output_attentions=True)
        second = model(torch.where(hidden, 9.0, pixels), attention_mask=MASK)
    torch.testing.assert_close(first.logits, second.logits)
    for weights in first.attentions:
        assert (weights[0, :, :, 2 + 10 :] == 0).all()
        assert (weights[1] > 0).all()


def test_a_mask_that_hides_nothing_changes_nothing(tiny_model, pixels, implementation):
    model = tiny_model()
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        expected = model(pixels).logits
        for count in (16, 17):
            torch.testing.assert_close(model(pixels, attention_mask=torch.ones(2, count)).logits, expected)


def test_a_mask_over_all_tokens_may_hide_a_register(tiny_model, pixels):
    model = tiny_model(num_register_tokens=1)
    mask = torch.ones(2, 18)
    mask[:, 1] = 0
    out = model(pixels, attention_mask=mask, output_attentions=True)
    assert all((weights[..., 1] == 0).all() for weights in out.attentions)


def test_the_padding_of_a_batch_is_as_if_it_were_not_there(tiny_model):
    """An image of 4 x 2 patches alone, and padded to 4 x 4 beside another."""
    model = tiny_model(position_embedding="sincos2d", pooling="mean", use_class_token=False, image_size=(16, 8))
    small = torch.rand(1, 3, 16, 8)
    expected = model(small).logits
    mask = (torch.arange(4) < 2).repeat(4)[None]
    padded = torch.nn.functional.pad(small, (0, 8))
    wide = tiny_model(position_embedding="sincos2d", pooling="mean", use_class_token=False, image_size=16)
    wide.load_state_dict(model.state_dict())
    torch.testing.assert_close(wide(padded, attention_mask=mask).logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_queries_have_gradients_under_gradient_checkpointing(tiny_model, use_reentrant):
    model = tiny_model().train()
    model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
    images = torch.rand(2, 3, 16, 16, requires_grad=True)
    out = model(images, output_qkv=True)
    out.queries[-1].square().sum().backward()
    assert images.grad is not None
    assert images.grad.abs().max() > 0
