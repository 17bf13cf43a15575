"""The four models: first values, data types, heads, masked image modeling, feature maps, gradient checkpointing."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import Trainer, TrainingArguments

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel

MODELS = (QKViTModel, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTBackbone)

# ---- the first values of the weights

EVERYTHING = {
    "use_distillation_token": True,
    "num_register_tokens": 4,
    "layer_scale_init_value": 0.25,
    "qk_norm": True,
    "use_pre_norm": True,
    "mlp_type": "swiglu",
    "hidden_size": 96,
    "initializer_range": 0.05,
}
ATTENTION_POOLING = {**EVERYTHING, "pooling": "attention", "use_class_token": False, "use_distillation_token": False}


def assert_first_values(model: nn.Module, std: float) -> None:
    """The table of `_init_weights`, parameter by parameter."""
    for name, parameter in model.named_parameters():
        module = model.get_submodule(name.rpartition(".")[0])
        kind = name.rpartition(".")[2]
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            assert (parameter == (1 if kind == "weight" else 0)).all(), name
        elif kind in ("bias", "mask_token"):
            assert (parameter == 0).all(), name
        elif kind == "layer_scale":
            assert (parameter == 0.25).all(), name
        else:
            assert parameter.abs().max() <= 2 * std, name
            # A normal distribution cut off at two standard deviations has a standard deviation of 0.88.
            error = 5 * 0.88 / math.sqrt(2 * parameter.numel())
            assert parameter.std().item() / std == pytest.approx(0.88, abs=error), name
            assert abs(parameter.mean().item()) < 5 * std / math.sqrt(parameter.numel()), name


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("norm_type", ["layernorm", "rmsnorm"])
def test_the_first_values_are_those_of_the_table(tiny_config, model_class, norm_type):
    assert_first_values(model_class(tiny_config(**EVERYTHING, norm_type=norm_type)), std=0.05)


def test_the_first_values_of_attention_pooling_are_those_of_the_table(tiny_config):
    assert_first_values(QKViTForImageClassification(tiny_config(**ATTENTION_POOLING)), std=0.05)


@pytest.mark.parametrize("model_class", MODELS)
@pytest.mark.parametrize("fields", [EVERYTHING, ATTENTION_POOLING], ids=["everything", "attention pooling"])
def test_no_parameter_is_left_uninitialised(tiny_config, model_class, fields):
    """Built without memory, given memory full of a strange number, then initialised: the number is gone."""
    with torch.device("meta"):
        model = model_class(tiny_config(**fields))
    model.to_empty(device="cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1234.5)
            parameter._is_hf_initialized = False
    for module in model.modules():
        module._is_hf_initialized = False
    model.init_weights()
    assert_first_values(model, std=0.05)


def test_there_are_no_buffers_that_loading_could_lose(tiny_config):
    for position_embedding in ("learned", "sincos2d", "rope2d", "none"):
        assert list(QKViTModel(tiny_config(position_embedding=position_embedding)).buffers()) == []


@pytest.mark.parametrize("model_class", MODELS)
def test_the_seed_decides_the_first_values(tiny_config, model_class):
    def values(seed):
        torch.manual_seed(seed)
        return nn.utils.parameters_to_vector(model_class(tiny_config()).parameters())

    assert torch.equal(values(3), values(3))
    assert not torch.equal(values(3), values(4))


# ---- the model as a whole


def test_the_model_is_embeddings_layers_and_a_last_normalisation(tiny_model, pixels):
    model = tiny_model(QKViTModel, use_pre_norm=True)
    tokens = model.pre_norm(model.embeddings(pixels)[0])
    for layer in model.layers:
        tokens = layer(tokens)[0]
    out = model(pixels)
    assert torch.equal(out.last_hidden_state, model.norm(tokens))
    assert out.last_hidden_state.shape == (2, 17, 32)


def test_every_parameter_gets_a_gradient(tiny_model, pixels):
    for fields in (EVERYTHING, ATTENTION_POOLING):
        model = tiny_model(**fields).train()
        model(pixels, labels=torch.tensor([0, 4])).loss.backward()
        assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


def test_projections_can_be_frozen_by_name(tiny_model, pixels):
    model = tiny_model()
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "q_proj" not in name
    model(pixels, labels=torch.tensor([0, 4])).loss.backward()
    assert all((parameter.grad is None) == ("q_proj" in name) for name, parameter in model.named_parameters())
    names = {name.rsplit(".", 2)[-2] for name, _ in model.named_parameters() if ".attention." in name}
    assert names == {"q_proj", "k_proj", "v_proj", "o_proj"}


@given(st.permutations(range(4)))
def test_images_of_a_batch_do_not_see_each_other(tiny_model, order):
    model = tiny_model(position_embedding="rope2d", pooling="class_mean")
    pixels = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        together = model(pixels).logits
        torch.testing.assert_close(model(pixels[order]).logits, together[order], rtol=1e-4, atol=1e-5)
        alone = torch.cat([model(image[None]).logits for image in pixels])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model_class", MODELS)
def test_gradient_checkpointing_changes_neither_output_nor_gradients(tiny_model, pixels, model_class):
    model = tiny_model(model_class, hidden_dropout_prob=0.1, drop_path_rate=0.2, position_embedding="rope2d").train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(5)
        first = model(pixels).to_tuple()[0]
        (first[0] if isinstance(first, tuple) else first).square().sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        gradients[-1] = [gradient.clone() for gradient in gradients[-1]]
    assert len(gradients[0]) > 20
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gives_about_the_logits_of_float32(tiny_model, pixels, dtype):
    for fields in ({}, {"position_embedding": "rope2d", "qk_norm": True}, {"position_embedding": "sincos2d"}):
        model = tiny_model(**fields, num_hidden_layers=2)
        expected = model(pixels).logits
        logits = copy.deepcopy(model).to(dtype)(pixels).logits
        assert logits.dtype == dtype
        torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.15)


def test_the_images_of_a_batch_are_dropped_one_by_one_in_stochastic_depth(tiny_model):
    model = tiny_model(drop_path_rate=0.5).train()
    logits = model(torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)).logits
    assert 4 <= len(torch.unique((1e3 * logits).round(), dim=0)) <= 16  # two layers of two branches may go


# ---- classification


def test_the_distillation_token_has_a_classifier_and_the_logits_are_the_mean_of_both(tiny_model, pixels):
    model = tiny_model(use_distillation_token=True, num_register_tokens=2)
    out, tokens = model(pixels), model.qkvit(pixels).last_hidden_state
    assert torch.equal(out.distillation_logits, model.distillation_classifier(tokens[:, 1]))
    torch.testing.assert_close(out.logits, (model.classifier(tokens[:, 0]) + out.distillation_logits) / 2)
    assert "distillation_logits" not in tiny_model()(pixels)


def test_without_labels_the_classifier_hands_on_the_pooled_output(tiny_model, pixels):
    model = tiny_model(num_labels=0, pooling="class_mean")
    assert torch.equal(model(pixels).logits, model.qkvit(pixels).pooler_output)


def test_a_model_learns_two_images_by_heart(tiny_model, pixels):
    model = tiny_model(seed=1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(30):  # of 80 random starts none needs more than 15
        optimizer.zero_grad()
        model(pixels, labels=torch.tensor([1, 3])).loss.backward()
        optimizer.step()
    assert model.eval()(pixels).logits.argmax(-1).tolist() == [1, 3]


def test_trainer_predicts_logits_alone_also_where_maps_are_given(tiny_model, tmp_path):
    model = tiny_model(output_attentions=True, output_hidden_states=True)
    data = [{"pixel_values": torch.rand(3, 16, 16), "labels": label} for label in (0, 1, 4)]
    arguments = TrainingArguments(tmp_path, use_cpu=True, report_to=[], per_device_eval_batch_size=2, disable_tqdm=True)
    prediction = Trainer(model, arguments).predict(data)
    assert prediction.predictions.shape == (3, 5)


# ---- masked image modeling


def test_the_decoder_sees_normalised_tokens_wherever_the_norm_stands(tiny_model, pixels):
    model = tiny_model(QKViTForMaskedImageModeling, norm_position="after_pooling").train()
    model(pixels, bool_masked_pos=torch.ones(2, 16, dtype=torch.bool)).loss.backward()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("patch_size", [4, (2, 8), (8, 2)])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_each_value_of_the_decoder_becomes_the_pixel_of_its_patch(tiny_model, patch_size, size):
    """Tokens that hold their patch's pixels and a decoder that copies them: the reconstruction is the image."""
    patch_height, patch_width = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
    count = 3 * patch_height * patch_width
    model = tiny_model(
        QKViTForMaskedImageModeling, patch_size=patch_size, hidden_size=count, head_dim=4, num_register_tokens=1
    )
    with torch.no_grad():
        model.decoder.weight.copy_(torch.eye(count))
        model.decoder.bias.zero_()
    image = torch.rand(2, 3, *size)
    patches = image.unfold(2, patch_height, patch_height).unfold(3, patch_width, patch_width)
    patches = patches.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)  # (B, P, channels * pixels of a patch)
    tokens = torch.cat([torch.full((2, 2, count), 9.0), patches], dim=1)
    model.qkvit.norm.register_forward_hook(lambda module, inputs, result: tokens)
    assert torch.equal(model(image).reconstruction, image)


@pytest.mark.parametrize("patch_size", [4, (2, 8)])
def test_the_loss_is_the_mean_absolute_difference_over_the_pixels_of_masked_patches(tiny_model, patch_size):
    model = tiny_model(QKViTForMaskedImageModeling, patch_size=patch_size)
    pixels = torch.rand(2, 3, 8, 24)
    patch_height, patch_width = (4, 4) if patch_size == 4 else patch_size
    rows, columns = 8 // patch_height, 24 // patch_width
    masked = torch.rand(2, rows * columns) < 0.5
    out = model(pixels, bool_masked_pos=masked)
    total, count = 0.0, 0
    for image in range(2):
        for patch in range(rows * columns):
            if masked[image, patch]:
                top, left = patch // columns * patch_height, patch % columns * patch_width
                window = (image, slice(None), slice(top, top + patch_height), slice(left, left + patch_width))
                total += (out.reconstruction[window] - pixels[window]).abs().sum().item()
                count += 3 * patch_height * patch_width
    assert out.loss.item() == pytest.approx(total / count, rel=1e-5)
    assert model(pixels).loss is None


def test_what_is_masked_is_not_seen(tiny_model, pixels):
    model = tiny_model(QKViTForMaskedImageModeling)
    masked = torch.rand(2, 16) < 0.5
    hidden = masked.reshape(2, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    first = model(pixels, bool_masked_pos=masked).reconstruction
    second = model(torch.where(hidden, 0.7, pixels), bool_masked_pos=masked).reconstruction
    assert torch.equal(first, second)
    assert not torch.equal(first, model(pixels).reconstruction)


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32])
def test_masked_patches_may_be_given_as_numbers(tiny_model, pixels, dtype):
    model = tiny_model(QKViTForMaskedImageModeling)
    masked = torch.rand(2, 16) < 0.5
    expected = model(pixels, bool_masked_pos=masked)
    found = model(pixels, bool_masked_pos=masked.to(dtype))
    assert torch.equal(found.reconstruction, expected.reconstruction)
    assert torch.equal(found.loss, expected.loss)


def test_no_masked_patch_gives_a_loss_of_zero_and_not_nan(tiny_model, pixels):
    model = tiny_model(QKViTForMaskedImageModeling)
    assert model(pixels, bool_masked_pos=torch.zeros(2, 16, dtype=torch.bool)).loss == 0


def test_the_loss_of_masked_patches_is_finite_in_float16_and_stays_float64_there(tiny_model):
    model = tiny_model(QKViTForMaskedImageModeling, image_size=160, num_hidden_layers=1)
    pixels, masked = 10 * torch.rand(1, 3, 160, 160), torch.ones(1, 1600, dtype=torch.bool)  # 76,800 of them
    expected = model.double()(pixels, bool_masked_pos=masked).loss
    assert expected.dtype == torch.float64
    assert model.half()(pixels, bool_masked_pos=masked).loss.item() == pytest.approx(expected.item(), rel=1e-2)


class Int8Linear(nn.Module):
    """A layer as bitsandbytes has it: int8 weights, floats in and out."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.scale = layer.weight.abs().max().item() / 127
        self.weight = nn.Parameter((layer.weight / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = layer.bias

    def forward(self, x):
        assert x.is_floating_point()
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def test_pixels_stay_floats_where_the_weights_are_integers(tiny_model, pixels):
    model = tiny_model()
    expected = model(pixels).logits
    model.qkvit.embeddings.patch_projection = Int8Linear(model.qkvit.embeddings.patch_projection)
    torch.testing.assert_close(model(pixels).logits, expected, atol=0.1, rtol=0.1)


# ---- backbone


@pytest.mark.parametrize("apply_layernorm", [True, False])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_feature_maps_are_the_patches_of_the_chosen_hidden_states_on_their_grid(tiny_model, apply_layernorm, size):
    fields = {
        "num_register_tokens": 2,
        "out_features": ["stem", "stage2", "stage3"],
        "apply_layernorm": apply_layernorm,
    }
    model = tiny_model(QKViTBackbone, **fields)
    out = model(torch.rand(2, 3, *size), output_hidden_states=True)
    rows, columns = size[0] // 4, size[1] // 4
    assert len(out.feature_maps) == 3
    for index, feature_map in zip((0, 2, 3), out.feature_maps, strict=True):
        assert feature_map.shape == (2, 32, rows, columns)
        tokens = model.norm(out.hidden_states[index]) if apply_layernorm else out.hidden_states[index]
        for row in range(rows):
            for column in range(columns):
                assert torch.equal(feature_map[:, :, row, column], tokens[:, 3 + row * columns + column])


def test_feature_maps_may_be_given_as_tokens(tiny_model, pixels):
    model = tiny_model(QKViTBackbone, reshape_hidden_states=False, out_indices=[-1])
    assert model(pixels).feature_maps[0].shape == (2, 17, 32)


def test_stages_are_chosen_by_name_or_by_index(tiny_model, pixels):
    by_name = tiny_model(QKViTBackbone, out_features=["stage1", "stage3"])
    by_index = tiny_model(QKViTBackbone, out_indices=[1, 3])
    assert by_name.out_features == by_index.out_features == ["stage1", "stage3"]
    assert by_name.channels == [32, 32]
    for first, second in zip(by_name(pixels).feature_maps, by_index(pixels).feature_maps, strict=True):
        assert torch.equal(first, second)


def test_by_default_the_last_stage_is_given_and_no_hidden_states(tiny_model, pixels):
    out = tiny_model(QKViTBackbone)(pixels)
    assert len(out.feature_maps) == 1
    assert "hidden_states" not in out


def test_the_last_feature_map_is_the_base_models_output(tiny_model, pixels):
    backbone, base = tiny_model(QKViTBackbone), tiny_model(QKViTModel)
    base.load_state_dict(backbone.state_dict())
    patches = base(pixels).last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4)
    assert torch.equal(backbone(pixels).feature_maps[0], patches)


@pytest.mark.parametrize("mlp_type", ["mlp", "swiglu"])
def test_shapes_can_be_had_without_weights_on_the_meta_device(tiny_config, mlp_type):
    with torch.device("meta"):
        model = QKViTModel(tiny_config(mlp_type=mlp_type)).eval()
        out = model(torch.empty(2, 3, *model.config.image_shape), output_qkv=True)
    tokens = model.config.num_prefix_tokens + math.prod(model.config.grid)
    assert out.last_hidden_state.shape == (2, tokens, model.config.hidden_size)
    assert out.queries[0].device.type == "meta"
