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
