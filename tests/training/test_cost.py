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
    torch.manual_seed(3)
    with torch.autograd.profiler.profile(use_cpu=True, profile_memory=True) as profile:
        forward, backward = forward_flops(model, size), training_flops(model, size)
    assert max(event.nbytes() for event in profile.kineto_results.events() if event.name() == "[memory]") < 10**6
    tokens, width = 64**2 + 1, model.config.hidden_size
    maps = model.config.num_hidden_layers * 4 * tokens**2 * width
    assert forward > maps
    assert backward > 2.9 * forward


class LooksAtNumbers(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, pixel_values):
        return self.model(pixel_values + float(pixel_values.mean()))


@pytest.mark.parametrize("measure", [forward_flops, training_flops])
def test_code_that_looks_at_numbers_is_counted_too(tiny_model, measure):
    model = tiny_model()
    size = (64, 64)
    assert measure(LooksAtNumbers(model), size) == measure(model, size)
    assert model.config._attn_implementation == "sdpa"


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
