"""What is measured on one image leaves the model as it was."""

import pytest
import torch
from transformers import LevitConfig, LevitForImageClassification, ResNetConfig, ResNetForImageClassification

from qkvit.training.cost import activation_bytes, forward_flops, training_flops


@pytest.fixture
def resnet():
    return ResNetForImageClassification(
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], layer_type="basic", num_labels=3)
    )


@pytest.fixture
def levit():
    """Has batch normalisation over one value an image."""
    return LevitForImageClassification(
        LevitConfig(
            image_size=32,
            hidden_sizes=[16, 16, 16],
            num_attention_heads=[2, 2, 2],
            depths=[1, 1, 1],
            key_dim=[8, 8, 8],
            mlp_ratio=[2, 2, 2],
            attention_ratio=[2, 2, 2],
            num_labels=3,
        )
    )


def test_patches_that_are_dropped_are_not_counted(tiny_model):
    whole, dropping = (tiny_model(patch_drop_rate=rate) for rate in (0.0, 0.5))
    size = whole.config.image_shape
    assert training_flops(dropping, size) < 0.7 * training_flops(whole, size)
    assert forward_flops(dropping, size) == forward_flops(whole, size)
    assert not any(module.training for module in dropping.eval().modules())


def test_a_large_image_is_counted_without_memory(tiny_model):
    """Of 4,097 tokens, a head's map is 67 MB."""
    model = tiny_model(image_size=64)
    size = (256, 256)
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        forward, backward = forward_flops(model, size), training_flops(model, size)
    assert max(event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]") < 10**6
    tokens, width = 64**2 + 1, model.config.hidden_size
    maps = model.config.num_hidden_layers * 4 * tokens**2 * width
    assert forward > maps
    assert backward > 2.9 * forward


class Inconvenient(torch.nn.Module):
    """Computes what a model computes, and does something with its input that needs numbers."""

    def __init__(self, model, look):
        super().__init__()
        self.model, self.config, self.look = model, model.config, look

    def forward(self, pixel_values):
        self.look(pixel_values)
        return self.model(pixel_values)


class CannotBeCopied(Inconvenient):
    def __deepcopy__(self, memo):
        raise TypeError("cannot pickle a lock")


@pytest.mark.parametrize("measure", [forward_flops, training_flops])
@pytest.mark.parametrize(
    ("kind", "look"),
    [
        (Inconvenient, lambda pixels: float(pixels.mean())),
        (Inconvenient, lambda pixels: pixels.numpy()),
        (Inconvenient, lambda pixels: pixels[pixels > 0]),
        (CannotBeCopied, lambda pixels: None),
    ],
)
def test_what_cannot_do_without_numbers_is_counted_with_them(tiny_model, measure, kind, look):
    model, size = tiny_model(), (64, 64)
    expected = measure(model, size)
    next(model.children()).train()
    modes = [module.training for module in model.modules()]
    assert measure(kind(model, look), size) == expected
    assert model.config._attn_implementation == "sdpa"
    assert [module.training for module in model.modules()] == modes


def test_an_error_of_the_model_is_the_models_own(tiny_model):
    def broken(pixels):
        raise ValueError("no such colour")

    with pytest.raises(ValueError, match="no such colour"):
        forward_flops(Inconvenient(tiny_model(), broken), (64, 64))


@pytest.mark.parametrize("family", ["resnet", "levit"])
@pytest.mark.parametrize("measure", [activation_bytes, forward_flops, training_flops])
def test_batch_normalisation_stays_as_it_is(request, family, measure):
    model = request.getfixturevalue(family).train()
    next(model.children()).eval()  # as a frozen part may be
    modes = [module.training for module in model.modules()]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert measure(model, (32, 32)) > 0
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    assert [module.training for module in model.modules()] == modes
