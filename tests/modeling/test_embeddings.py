"""From pixels to tokens: patches, the tokens before them, masking, positions, patch dropout."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit import QKViTForImageClassification, QKViTModel
from qkvit.modeling.embeddings_qkvit import QKViTEmbeddings


def make(tiny_config, use_mask_token=False, **fields) -> QKViTEmbeddings:
    """Embeddings with random tokens and positions."""
    embeddings = QKViTEmbeddings(tiny_config(**fields), use_mask_token=use_mask_token).eval()
    with torch.no_grad():
        for parameter in embeddings.parameters():
            parameter.copy_(torch.randn_like(parameter))
    return embeddings


def test_a_patch_token_is_the_linear_projection_of_the_patches_pixels(tiny_config):
    embeddings = make(tiny_config, image_size=(12, 8), patch_size=(3, 2), position_embedding="none")
    pixels = torch.rand(2, 3, 12, 8)
    tokens, _, _ = embeddings(pixels)
    weight, bias = embeddings.patch_projection.weight.flatten(1), embeddings.patch_projection.bias
    for row in range(4):
        for column in range(4):
            patch = pixels[:, :, 3 * row : 3 * row + 3, 2 * column : 2 * column + 2].flatten(1)
            torch.testing.assert_close(tokens[:, 1 + row * 4 + column], patch @ weight.T + bias, rtol=1e-4, atol=1e-5)


def test_the_order_is_class_token_distillation_token_registers_patches(tiny_config, pixels):
    embeddings = make(tiny_config, use_distillation_token=True, num_register_tokens=3, position_embedding="none")
    tokens, _, _ = embeddings(pixels)
    assert tokens.shape == (2, 1 + 1 + 3 + 16, 32)
    prefix = torch.cat([embeddings.class_token, embeddings.distillation_token, embeddings.register_tokens], dim=1)
    assert torch.equal(tokens[:, :5], prefix.expand(2, -1, -1))


def test_without_prefix_tokens_there_are_patches_alone(tiny_config, pixels):
    tokens, _, _ = make(tiny_config, use_class_token=False, pooling="mean")(pixels)
    assert tokens.shape == (2, 16, 32)


@pytest.mark.parametrize(
    ("fields", "placed"),
    [
        ({}, 2),
        ({"position_coverage": "patches"}, 0),
        ({"position_coverage": "class"}, 2),
        ({"position_coverage": "all"}, 4),
    ],
)
def test_learned_positions_cover_the_patches_and_the_tokens_that_their_coverage_says(
    tiny_config, pixels, fields, placed
):
    embeddings = make(tiny_config, use_distillation_token=True, num_register_tokens=2, **fields)
    assert embeddings.position_embeddings.shape == (1, placed + 16, 32)
    with_positions, _, _ = embeddings(pixels)
    positions = embeddings.position_embeddings.detach().clone()
    with torch.no_grad():
        embeddings.position_embeddings.zero_()
    added = with_positions - embeddings(pixels)[0]
    torch.testing.assert_close(added[:, :placed], positions[:, :placed].expand(2, -1, -1))
    assert (added[:, placed:4] == 0).all()
    torch.testing.assert_close(added[:, 4:], positions[:, placed:].expand(2, -1, -1))


@pytest.mark.parametrize("position_embedding", ["sincos2d", "rope2d", "none"])
def test_other_positions_have_no_parameters(tiny_config, position_embedding):
    assert make(tiny_config, position_embedding=position_embedding).position_embeddings is None


def test_rotary_positions_alone_give_a_rotation(tiny_config, pixels):
    for position_embedding in ("learned", "sincos2d", "none"):
        assert make(tiny_config, position_embedding=position_embedding)(pixels)[2] is None
    cosine, sine = make(tiny_config, position_embedding="rope2d")(pixels)[2]
    assert cosine.shape == sine.shape == (16, 16)


def test_the_mask_token_stands_in_for_masked_patches_and_for_no_others(tiny_config, pixels):
    embeddings = make(tiny_config, use_mask_token=True, position_embedding="none", num_register_tokens=1)
    plain, _, _ = embeddings(pixels)
    masked = torch.rand(2, 16) < 0.5
    tokens, _, _ = embeddings(pixels, bool_masked_pos=masked)
    assert torch.equal(tokens[:, :2], plain[:, :2])
    assert torch.equal(tokens[:, 2:][~masked], plain[:, 2:][~masked])
    assert torch.equal(tokens[:, 2:][masked], embeddings.mask_token[0].expand(int(masked.sum()), -1))


def test_masked_patches_keep_their_positions(tiny_config, pixels):
    embeddings = make(tiny_config, use_mask_token=True)
    tokens, _, _ = embeddings(pixels, bool_masked_pos=torch.ones(2, 16, dtype=torch.bool))
    torch.testing.assert_close(tokens[0, 1:], embeddings.mask_token[0] + embeddings.position_embeddings[0, 1:])


def test_a_model_has_a_mask_token_where_its_configuration_says_so(tiny_model, pixels):
    assert tiny_model(QKViTModel).embeddings.mask_token is None
    model = tiny_model(QKViTModel, use_mask_token=True)
    masked = torch.rand(2, 16) < 0.5
    assert not torch.equal(model(pixels, bool_masked_pos=masked).pooler_output, model(pixels).pooler_output)


def test_patches_can_go_without_a_bias(tiny_config):
    embeddings = make(tiny_config, patch_bias=False, position_embedding="none")
    assert embeddings.patch_projection.bias is None
    assert (embeddings(torch.zeros(1, 3, 16, 16))[0][:, 1:] == 0).all()


# ---- other sizes


def test_at_the_trained_size_nothing_is_interpolated(tiny_model, pixels, monkeypatch):
    model = tiny_model()
    expected = model(pixels).logits
    monkeypatch.setattr(torch.nn.functional, "interpolate", None)  # calling it would fail
    assert torch.equal(model(pixels).logits, expected)


@pytest.mark.parametrize("position_embedding", ["learned", "sincos2d", "rope2d", "none"])
@pytest.mark.parametrize("size", [(16, 16), (32, 32), (8, 24), (4, 4), (20, 12)])
def test_images_of_other_sizes_and_aspect_ratios_go_through(tiny_model, position_embedding, size):
    model = tiny_model(position_embedding=position_embedding)
    with torch.no_grad():
        out = model(torch.rand(1, 3, *size), output_attentions=0)
    assert out.logits.isfinite().all()
    assert out.attentions[0].shape[-1] == 1 + size[0] * size[1] // 16


@pytest.mark.parametrize("position_embedding", ["learned", "sincos2d", "rope2d"])
def test_an_image_and_its_transpose_differ(tiny_model, position_embedding):
    model = tiny_model(position_embedding=position_embedding)
    image = torch.rand(1, 3, 8, 24)
    by_patches = image.unfold(2, 4, 4).unfold(3, 4, 4).transpose(2, 3)  # the same patches, rows for columns
    turned = by_patches.permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 24, 8)
    assert not torch.allclose(model(image).logits, model(turned).logits, atol=1e-4)


def test_without_positions_the_order_of_the_patches_does_not_matter(tiny_model):
    model = tiny_model(position_embedding="none", pooling="mean")
    image = torch.rand(1, 3, 8, 24)
    by_patches = image.unfold(2, 4, 4).unfold(3, 4, 4).transpose(2, 3)
    turned = by_patches.permute(0, 1, 2, 4, 3, 5).reshape(1, 3, 24, 8)
    torch.testing.assert_close(model(image).logits, model(turned).logits, rtol=1e-4, atol=1e-5)


def test_positions_are_antialiased_where_the_configuration_says_so(tiny_config):
    pixels = torch.rand(1, 3, 8, 8)  # a smaller grid than the trained one: there antialiasing matters
    sharp, soft = (make(tiny_config, position_antialias=antialias) for antialias in (False, True))
    soft.load_state_dict(sharp.state_dict())
    assert torch.equal(sharp(pixels)[0][:, 0], soft(pixels)[0][:, 0])
    assert not torch.allclose(sharp(pixels)[0], soft(pixels)[0], atol=1e-3)


# ---- patch dropout


@given(st.floats(0.01, 0.99), st.integers(0, 2**31 - 1))
def test_patch_dropout_keeps_a_subset_of_the_rounded_size_in_order_with_its_mask_and_rotation(tiny_config, rate, seed):
    torch.manual_seed(seed)
    embeddings = make(tiny_config, patch_drop_rate=rate, position_embedding="rope2d", num_register_tokens=2).train()
    pixels = torch.rand(2, 3, 16, 16)
    token_mask = torch.rand(2, 19) < 0.5
    whole, _, (cosine, sine) = embeddings.eval()(pixels, token_mask=token_mask)
    tokens, mask, (kept_cosine, kept_sine) = embeddings.train()(pixels, token_mask=token_mask)

    kept_count = max(1, round(16 * (1 - rate)))
    assert tokens.shape == (2, 3 + kept_count, 32)
    assert mask.shape == (2, 3 + kept_count)
    assert torch.equal(tokens[:, :3], whole[:, :3])
    assert torch.equal(mask[:, :3], token_mask[:, :3])
    for image in range(2):
        equal = (tokens[image, 3:, None] == whole[image, None, 3:]).all(-1)  # (P kept, P)
        kept = equal.int().argmax(dim=1)
        assert (equal.sum(dim=1) == 1).all(), "every token is one of the image's own"
        assert (kept.diff() > 0).all(), "in order, none twice"
        assert torch.equal(mask[image, 3:], token_mask[image, 3:][kept])
        assert torch.equal(kept_cosine[image, 0], cosine[kept])
        assert torch.equal(kept_sine[image, 0], sine[kept])


def test_patch_dropout_draws_every_patch_equally_often_and_for_each_image_anew(tiny_config):
    embeddings = make(tiny_config, patch_drop_rate=0.75, use_class_token=False, pooling="mean").train()
    numbers = torch.arange(16.0).expand(4000, 16).unsqueeze(-1)
    kept, _, _ = embeddings.drop_patches(numbers, None, None)
    share = kept.flatten().long().bincount(minlength=16) / 4000
    assert (share - 0.25).abs().max() < 5 * (0.25 * 0.75 / 4000) ** 0.5  # five standard errors
    assert len(torch.unique(kept.squeeze(-1), dim=0)) > 1000


def test_patch_dropout_is_off_outside_training(tiny_model, pixels):
    model = tiny_model(patch_drop_rate=0.5)
    out = model(pixels, output_attentions=0)
    assert out.attentions[0].shape[-1] == 17
    assert torch.equal(out.logits, tiny_model()(pixels).logits)
    assert model.train()(pixels, output_attentions=0).attentions[0].shape[-1] == 9


@pytest.mark.parametrize("position_embedding", ["learned", "sincos2d", "rope2d"])
def test_patch_dropout_equals_a_mask_over_the_patches_that_it_leaves_out(
    tiny_model, pixels, position_embedding, monkeypatch
):
    """Left out or hidden from every other token: the class token sees the same."""
    model = tiny_model(QKViTModel, position_embedding=position_embedding, patch_drop_rate=0.5).train()
    scores = torch.rand(2, 16)
    monkeypatch.setattr(torch, "rand", lambda *size, **kwargs: scores)
    dropped = model(pixels).pooler_output
    mask = torch.zeros(2, 16).scatter(1, scores.argsort(dim=1)[:, :8], 1)
    hidden = model.eval()(pixels, attention_mask=mask).pooler_output
    torch.testing.assert_close(dropped, hidden, rtol=1e-4, atol=1e-5)


def test_dropout_on_the_embeddings_is_of_training_alone(tiny_config, pixels):
    embeddings = make(tiny_config, hidden_dropout_prob=0.5)
    quiet = embeddings(pixels)[0]
    noisy = embeddings.train()(pixels)[0]
    zero = noisy == 0
    assert 0.4 < zero.float().mean() < 0.6
    torch.testing.assert_close(noisy[~zero], 2 * quiet[~zero])


def test_images_of_another_data_type_than_the_weights_are_taken(tiny_model, pixels):
    model = tiny_model(QKViTForImageClassification)
    assert model(pixels.double()).logits.dtype == torch.float32
    assert model.to(torch.bfloat16)(pixels).logits.dtype == torch.bfloat16
