"""Grouped-query attention, where several heads of queries share one of keys and values."""

import pytest
import torch
import transformers

from qkvit.analysis import Mean, Noise, TokenLayout, collect, intervene, record, rollout, weight_statistics
from qkvit.analysis.head_weights import head_weights

LAYOUT = TokenLayout(grid=(4, 4), has_class_token=True, num_register_tokens=8)


@pytest.fixture
def model() -> torch.nn.Module:
    """Four heads of queries, two of keys and values."""
    if not hasattr(transformers, "Sapiens2Config"):
        pytest.skip("this transformers has no vision model with grouped-query attention")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = transformers.Sapiens2Config(
        **sizes, num_key_value_heads_per_layer=[2, 2], image_size=[16, 16], patch_size=4
    )
    return transformers.Sapiens2Model(config).eval()


@pytest.mark.parametrize("heads", [1, 2, -1, [3, 0]])
def test_the_keys_and_values_of_a_head_are_those_that_it_uses(model, pixels, heads):
    with torch.no_grad(), record(model, 0, ("query", "key", "value", "attention", "output"), heads=heads) as recording:
        model(pixel_values=pixels)
    layer = recording[0]
    torch.testing.assert_close((layer.query @ layer.key.mT * layer.scaling).softmax(-1), layer.attention)
    torch.testing.assert_close(layer.attention @ layer.value, layer.output)


def test_statistics_are_of_every_head_of_queries(model, pixels):
    with torch.no_grad(), record(model, tensors=("query", "key", "attention")) as recording:
        model(pixel_values=pixels)
    layers = [torch.special.entr(recording[layer].attention).sum(-1).mean((0, 2)) for layer in recording]
    found = collect(model, [pixels], layout=LAYOUT, show_progress=False)
    torch.testing.assert_close(found.mean("entropy"), torch.stack(layers).double(), rtol=1e-5, atol=0)
    entropy = recording[1].statistics(LAYOUT, "entropy").entropy
    torch.testing.assert_close(entropy.mean((0, 2)), layers[1], rtol=1e-5, atol=0)
    assert rollout(recording, layout=LAYOUT).sum(-1).tolist() == pytest.approx([1, 1])


def test_weights_are_those_of_the_shared_heads(model):
    weights = head_weights(model)[0]
    attention = next(module for module in model.modules() if hasattr(module, "k_proj"))
    of_groups = attention.k_proj.weight.detach().double().unflatten(0, (2, 8))
    assert torch.equal(weights.key, of_groups[[0, 0, 1, 1]])
    assert weights.query.shape == weights.value.shape == (4, 8, 32)
    assert weight_statistics(model).numbers["qk_norm"].shape == (2, 4)


@pytest.mark.parametrize("target", ["query", "key", "value"])
def test_what_is_collected_of_a_data_set_can_take_the_place_of_a_batch(model, pixels, target):
    mean, second = collect(model, [pixels], layout=LAYOUT, show_progress=False).vectors(target)
    std = (second.diagonal(dim1=-2, dim2=-1) - mean.square()).clamp(min=0).sqrt()
    edits = {(0, target): Mean(mean[0]), (1, target): Noise(mean=mean[1], std=std[1])}
    with torch.no_grad(), intervene(model, edits), record(model, tensors=target) as recording:
        model(pixel_values=pixels)
    put_in = getattr(recording[0], target)
    expected = mean[0][:: 4 // put_in.shape[1], None].to(put_in).expand_as(put_in)
    torch.testing.assert_close(put_in, expected)
