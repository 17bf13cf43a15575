"""Bad input: each a clear error of one sentence that names the value and the way out."""

import math
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.checks_qkvit import chosen_layers, token_mask_from

MODELS = (QKViTModel, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTBackbone)


@pytest.fixture(params=MODELS, ids=lambda model: model.__name__)
def model(request, tiny_model) -> torch.nn.Module:
    return tiny_model(request.param)


def test_no_pixels(raises_sentence, model):
    with raises_sentence(ValueError, "pixel_values is None", "(batch, channels, height, width)"):
        model(pixel_values=None)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'pixel_values'"):
        model()


@pytest.mark.parametrize("pixels", [np.zeros((1, 3, 16, 16)), [[0.0]], "cat.jpg"])
def test_pixels_that_are_no_tensor(raises_sentence, model, pixels):
    with raises_sentence(ValueError, type(pixels).__name__, "return_tensors='pt'"):
        model(pixels)


@pytest.mark.parametrize("shape", [(3, 16, 16), (16, 16), (), (1, 1, 3, 16, 16)])
def test_pixels_of_the_wrong_rank(raises_sentence, model, shape):
    with raises_sentence(ValueError, str(shape), "pixel_values[None]"):
        model(torch.rand(shape))


@pytest.mark.parametrize("channels", [0, 1, 4])
def test_the_wrong_number_of_channels(raises_sentence, model, channels):
    with raises_sentence(ValueError, f"{channels} channels", "num_channels=3", "RGB"):
        model(torch.rand(2, channels, 16, 16))


@pytest.mark.parametrize(
    ("height", "width", "words"),
    [
        (18, 16, ["height 18", "to 16"]),
        (16, 19, ["width 19", "to 20"]),
        (3, 16, ["height 3", "to 4"]),
        (1, 16, ["height 1", "to 4"]),
        (0, 16, ["height 0", "to 4"]),
    ],
)
def test_a_size_that_the_patch_does_not_divide(raises_sentence, model, height, width, words):
    with raises_sentence(ValueError, "patch_size 4", *words):
        model(torch.rand(1, 3, height, width))


def test_an_empty_batch(raises_sentence, model):
    with raises_sentence(ValueError, "0 images"):
        model(torch.rand(0, 3, 16, 16))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_integer_pixels(raises_sentence, model, dtype):
    with raises_sentence(ValueError, str(dtype), "image processor"):
        model(torch.zeros(1, 3, 16, 16, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_pixels_that_are_no_numbers(raises_sentence, model, value, dtype):
    pixels = torch.rand(2, 3, 16, 16).to(dtype)
    pixels[1, 2, 3, 4:6] = value
    with raises_sentence(ValueError, "2 values", "NaN"):
        model(pixels)


def test_infinities_of_both_signs_do_not_hide_each_other(raises_sentence, model):
    pixels = torch.rand(1, 3, 16, 16)
    pixels[0, 0, 0, :2] = torch.tensor([math.inf, -math.inf])
    with raises_sentence(ValueError, "2 values"):
        model(pixels)


@pytest.mark.parametrize("value", [60_000.0, 3e38])
def test_large_pixels_are_numbers(tiny_model, value):
    """Their sum overflows; each of them is finite."""
    pixels = torch.full((1, 3, 16, 16), value)
    tiny_model(QKViTModel)(pixels.half() if value < 65_504 else pixels)


@pytest.mark.parametrize("name", ["output_attention", "output_qvk", "pixels", "bool_mask_pos", "head_mask"])
def test_a_misspelt_argument(raises_sentence, model, pixels, name):
    with raises_sentence(TypeError, f"'{name}'", "help("):
        model(pixels, **{name: True})


def test_what_would_be_ignored_is_refused(model, pixels):
    with pytest.raises(TypeError, match="'num_items_in_batch'"):  # no loss here is divided by it
        model(pixels, num_items_in_batch=4)


def test_masks_come_to_the_device_of_the_pixels(tiny_model):
    """ "meta" stands for a GPU: what is there cannot be looked at, so a mask is looked at where it comes from."""
    model = tiny_model(QKViTModel, use_mask_token=True, pooling="mean").to("meta")
    pixels, seen = torch.zeros(2, 3, 16, 16, device="meta"), torch.ones(2, 16, dtype=torch.bool)
    assert model(pixels, bool_masked_pos=~seen).pooler_output.device.type == "meta"
    assert token_mask_from(seen, 2, 16, 1, pixels.device).device.type == "meta"
    with pytest.raises(ValueError, match="hides every token"):
        token_mask_from(torch.zeros(2, 17), 2, 16, 1, pixels.device)


def test_arguments_that_a_class_does_not_have(tiny_model, pixels):
    with pytest.raises(TypeError, match="'labels'"):
        tiny_model(QKViTModel)(pixels, labels=torch.tensor([0, 1]))


@pytest.mark.parametrize("label", [5, -1, 1000])
def test_labels_out_of_range(raises_sentence, tiny_model, pixels, label):
    with raises_sentence(ValueError, f"label {label} ", "[0, 5)", "num_labels"):
        tiny_model()(pixels, labels=torch.tensor([0, label]))


# ---- masks


@pytest.mark.parametrize("shape", [(2, 15), (2, 18), (1, 16), (2, 17, 17), (16,), (2, 1, 17, 17)])
def test_an_attention_mask_of_the_wrong_shape(raises_sentence, model, pixels, shape):
    with raises_sentence(ValueError, str(shape), "(2, 16)", "(2, 17)"):
        model(pixels, attention_mask=torch.ones(shape))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_an_attention_mask_over_the_patches_sees_every_token_before_them(dtype):
    mask = torch.tensor([[1, 0, 1], [0, 0, 1]]).to(dtype)
    found = token_mask_from(mask, 2, num_patches=3, num_prefix_tokens=2, device=torch.device("cpu"))
    assert found.tolist() == [[True, True, True, False, True], [True, True, False, False, True]]
    whole = torch.tensor([[0, 1, 1, 0, 1]]).to(dtype)
    found = token_mask_from(whole, 1, num_patches=3, num_prefix_tokens=2, device=torch.device("cpu"))
    assert found.tolist() == [[False, True, True, False, True]]


@pytest.mark.parametrize("shape", [(2, 17), (1, 16), (2, 4, 4), (16,)])
def test_masked_patches_of_the_wrong_shape(raises_sentence, tiny_model, pixels, shape):
    with raises_sentence(ValueError, "bool_masked_pos", str(shape), "(2, 16)"):
        tiny_model(QKViTForMaskedImageModeling)(pixels, bool_masked_pos=torch.ones(shape, dtype=torch.bool))


def test_masked_patches_for_a_model_without_a_mask_token(raises_sentence, tiny_model, pixels):
    with raises_sentence(ValueError, "no mask token", "QKViTForMaskedImageModeling"):
        tiny_model(QKViTModel)(pixels, bool_masked_pos=torch.ones(2, 16, dtype=torch.bool))


def test_patch_dropout_does_not_go_with_reconstruction(raises_sentence, tiny_model, pixels):
    model = tiny_model(QKViTForMaskedImageModeling, patch_drop_rate=0.5)
    model(pixels)  # in eval mode nothing is left out
    with raises_sentence(ValueError, "patch_drop_rate=0.5", "0.0"):
        model.train()(pixels)


# ---- which layers


@given(st.integers(1, 6), st.data())
def test_layers_are_chosen_by_index_from_either_end(depth, data):
    layers = data.draw(st.lists(st.integers(-depth, depth - 1), max_size=6))
    expected = {range(depth)[layer] for layer in layers}
    assert chosen_layers(layers, depth, "output_qkv") == expected
    assert chosen_layers(tuple(layers), depth, "output_qkv") == expected
    for layer in layers:
        assert chosen_layers(layer, depth, "output_qkv") == {range(depth)[layer]}


def test_true_chooses_every_layer_and_nothing_chooses_none():
    assert chosen_layers(True, 4, "output_qkv") == {0, 1, 2, 3}
    for nothing in (False, None, [], ()):
        assert chosen_layers(nothing, 4, "output_qkv") == frozenset()


@pytest.mark.parametrize("argument", ["output_attentions", "output_qkv"])
@pytest.mark.parametrize(
    "choice", [3, -4, [0, 3], "all", [True], 1.5, [0.0], [None], "1", {"0": 1}, torch.tensor([1.0])]
)
def test_a_layer_that_does_not_exist(raises_sentence, model, pixels, argument, choice):
    with raises_sentence(ValueError, argument, "from -3 to 2"):
        model(pixels, **{argument: choice})


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (torch.tensor([[0.0] * 8 + [-10_000.0] * 8]), "negative"),
        ([1] * 16, "list"),
    ],
)
def test_a_mask_of_another_convention_is_refused(tiny_model, raises_sentence, mask, words):
    with raises_sentence(ValueError, "attention_mask", words):
        tiny_model()(torch.rand(1, 3, 16, 16), attention_mask=mask)


def test_a_mask_that_hides_all_of_an_image_is_refused(tiny_model, raises_sentence):
    model = tiny_model(use_class_token=False, pooling="mean")
    with raises_sentence(ValueError, "attention_mask", "every token"):
        model(torch.rand(1, 3, 16, 16), attention_mask=torch.zeros(1, 16))


@pytest.mark.parametrize("argument", ["is_causal", "position_ids", "output_router_logits", "output_atentions"])
def test_arguments_that_would_do_nothing_or_something_else_are_refused(tiny_model, argument):
    with pytest.raises(TypeError, match=argument):
        tiny_model()(torch.rand(1, 3, 16, 16), **{argument: True})


def test_a_backbone_refuses_to_drop_patches_in_training(tiny_model, raises_sentence):
    with raises_sentence(ValueError, "patch_drop_rate=0.5"):
        tiny_model(QKViTBackbone, patch_drop_rate=0.5).train()(torch.rand(1, 3, 16, 16))


def test_layers_may_be_numpy_s_or_torch_s_numbers():
    assert chosen_layers([np.int64(0), torch.tensor(-1)], 3, "output_qkv") == {0, 2}
    with pytest.raises(ValueError, match="no layer of this model"):
        chosen_layers([np.float64(1)], 3, "output_qkv")


def test_what_is_traced_has_no_values_to_look_at(tiny_model, pixels):
    model = tiny_model()
    graph = make_fx(lambda images: model(images).logits)(pixels)
    torch.testing.assert_close(graph(pixels), model(pixels).logits)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = model(mode.from_tensor(pixels), labels=mode.from_tensor(torch.tensor([0, 1])))
    assert fake.logits.shape == (2, 5)
    with pytest.raises(ValueError, match="NaN"):
        model(torch.full_like(pixels, torch.nan))


def test_torch_s_own_quantisation_runs(tiny_model, pixels):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        quantised = torch.ao.quantization.quantize_dynamic(tiny_model(), {torch.nn.Linear})
        assert quantised(pixels).logits.shape == (2, 5)
