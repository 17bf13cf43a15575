"""From tokens to one vector an image: each kind against its plain formula, with and without a mask."""

import math

import pytest
import torch

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.pooling_qkvit import QKViTPooling

PREFIX = 3  # a class token and two registers


@pytest.fixture
def tokens() -> torch.Tensor:
    return torch.randn(2, PREFIX + 6, 32)


@pytest.fixture
def seen() -> torch.Tensor:
    """Two patches of the first image are hidden, five of the second."""
    mask = torch.ones(2, PREFIX + 6, dtype=torch.bool)
    mask[0, PREFIX + 1 : PREFIX + 3] = False
    mask[1, PREFIX + 1 :] = False
    return mask


def make(tiny_config, pooling: str, **fields) -> QKViTPooling:
    return QKViTPooling(tiny_config(pooling=pooling, num_register_tokens=2, **fields))


def mean_of_seen(tokens, seen) -> torch.Tensor:
    return torch.stack([image[PREFIX:][mask[PREFIX:]].mean(dim=0) for image, mask in zip(tokens, seen, strict=True)])


def test_class_takes_the_first_token(tiny_config, tokens, seen):
    for mask in (None, seen):
        assert torch.equal(make(tiny_config, "class")(tokens, mask), tokens[:, 0])


def test_mean_is_over_the_patches_that_are_seen(tiny_config, tokens, seen):
    pooling = make(tiny_config, "mean")
    torch.testing.assert_close(pooling(tokens), tokens[:, PREFIX:].mean(dim=1))
    torch.testing.assert_close(pooling(tokens, seen), mean_of_seen(tokens, seen))


def test_class_mean_is_both_beside_each_other(tiny_config, tokens, seen):
    found = make(tiny_config, "class_mean")(tokens, seen)
    assert torch.equal(found[:, :32], tokens[:, 0])
    torch.testing.assert_close(found[:, 32:], mean_of_seen(tokens, seen))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_mask_that_hides_nothing_leaves_the_mean_as_exact_as_without(dtype):
    tokens = 20 + torch.randn(1, 4096, 4).to(dtype)  # their sum is too large for float16
    exact, step = tokens.double().mean(1), torch.finfo(dtype).eps
    for mask in (None, torch.ones(1, 4096, dtype=torch.bool)):
        found = QKViTPooling.mean(tokens, mask)
        assert found.dtype == dtype
        torch.testing.assert_close(found.double(), exact, rtol=step, atol=0)


def test_the_mean_of_no_patches_is_zero_and_not_nan(tiny_config, tokens):
    hidden = torch.zeros(2, PREFIX + 6, dtype=torch.bool)
    assert torch.equal(make(tiny_config, "mean")(tokens, hidden), torch.zeros(2, 32))


@pytest.mark.parametrize("masked", [False, True])
def test_attention_pooling_is_a_learned_querys_attention_and_an_mlp(tiny_config, tokens, seen, masked):
    pooling = make(tiny_config, "attention")
    head = pooling.attention
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        found = pooling(tokens, seen if masked else None)
        for image in range(2):
            visible = tokens[image][seen[image]] if masked else tokens[image]
            query, keys, values = head.q_proj(head.probe)[0, 0], head.k_proj(visible), head.v_proj(visible)
            heads = []
            for start in range(0, 32, 16):
                part = slice(start, start + 16)
                weights = (keys[:, part] @ query[part] / math.sqrt(16)).softmax(0)
                heads.append(weights @ values[:, part])
            pooled = head.o_proj(torch.cat(heads))
            expected = pooled + head.mlp(head.norm(pooled))
            torch.testing.assert_close(found[image], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", ["mean", "class_mean", "attention"])
@pytest.mark.parametrize("masked", [False, True])
def test_pooling_covers_the_patches_or_all_tokens(tiny_config, tokens, seen, pooling, masked):
    mask = seen if masked else None
    patches, everything = (make(tiny_config, pooling, pooling_coverage=coverage) for coverage in ("patches", "all"))
    for parameter in patches.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    everything.load_state_dict(patches.state_dict())
    changed = tokens.clone()
    changed[:, 1:PREFIX] = 7.0  # the registers
    assert torch.equal(patches(changed, mask), patches(tokens, mask))
    assert not torch.allclose(everything(changed, mask), everything(tokens, mask))


def test_the_mean_of_all_tokens_counts_each_once(tiny_config, tokens, seen):
    pooling = make(tiny_config, "mean", pooling_coverage="all")
    torch.testing.assert_close(pooling(tokens), tokens.mean(dim=1))
    means = torch.stack([image[mask].mean(dim=0) for image, mask in zip(tokens, seen, strict=True)])
    torch.testing.assert_close(pooling(tokens, seen), means)


# ---- after pooling


@pytest.mark.parametrize("size", [None, 7])
def test_a_pooler_is_a_dense_layer_and_its_activation(tiny_model, pixels, size):
    plain, model = tiny_model(QKViTModel), tiny_model(QKViTModel, pooler_act="tanh", pooler_size=size)
    model.load_state_dict(plain.state_dict(), strict=False)
    found = model(pixels).pooler_output
    assert found.shape == (2, size or 32)
    dense = model.pooler.dense
    torch.testing.assert_close(found, torch.tanh(plain(pixels).pooler_output @ dense.weight.T + dense.bias))


@pytest.mark.parametrize("pooling", ["class", "mean", "class_mean", "attention"])
def test_the_normalisation_can_stand_after_pooling(tiny_model, pixels, pooling):
    model = tiny_model(QKViTModel, pooling=pooling, norm_position="after_pooling")
    out = model(pixels, output_hidden_states=True)
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])
    pooled = model.pooler.pool(out.last_hidden_state, None)
    parts = [model.norm(part) for part in pooled.split(32, dim=-1)]
    torch.testing.assert_close(out.pooler_output, torch.cat(parts, dim=-1))


def test_there_can_be_no_final_normalisation(tiny_model, pixels):
    model = tiny_model(QKViTModel, norm_position="none")
    out = model(pixels, output_hidden_states=True)
    assert not any(name.startswith("norm.") for name in model.state_dict())
    assert torch.equal(out.last_hidden_state, out.hidden_states[-1])
    assert torch.equal(out.pooler_output, out.hidden_states[-1][:, 0])


@pytest.mark.parametrize("pooling", ["class", "mean", "class_mean", "attention"])
def test_the_pooled_output_is_that_of_the_normalised_tokens_and_as_wide_as_the_configuration_says(
    tiny_model, pixels, pooling
):
    model = tiny_model(QKViTModel, pooling=pooling, num_register_tokens=2)
    out = model(pixels)
    assert out.pooler_output.shape == (2, model.config.pooled_size)
    assert torch.equal(out.pooler_output, model.pooler(out.last_hidden_state))


@pytest.mark.parametrize("pooling", ["class", "mean", "class_mean", "attention"])
def test_the_classifier_stands_on_the_pooled_output(tiny_model, pixels, pooling):
    model = tiny_model(QKViTForImageClassification, pooling=pooling)
    pooled = model.qkvit(pixels).pooler_output
    assert torch.equal(model(pixels).logits, model.classifier(pooled))
