"""What is recorded, edited and computed is what TransformerLens gives for the same model, where it is installed.

TransformerLens 4 wraps transformers' own ViT, so the model here is that one. (What 4.3 calls `hook_attn_scores` is the
map there, not the scores before softmax, so scores are not compared.)
"""

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification

from qkvit.analysis import TokenLayout, Zero, attention_statistics, intervene, record, rollout

bridge = pytest.importorskip("transformer_lens.model_bridge", reason="transformer-lens 4 is not installed")

LAYERS, HEADS, WIDTH = 3, 2, 16
CLOSE = {"rtol": 1e-5, "atol": 1e-6}
HOOKS = {"query": "hook_q", "key": "hook_k", "value": "hook_v", "output": "hook_z"}  # (B, N, H, D) there


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=HEADS * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
        num_labels=3,
        initializer_range=0.3,  # so that attention is far from uniform
    )
    folder = tmp_path_factory.mktemp("vit")
    ViTForImageClassification(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return ViTForImageClassification.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def theirs(folder):
    return bridge.TransformerBridge.boot_transformers(str(folder), device="cpu")


@pytest.fixture(scope="module")
def images():
    return torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def cache(theirs, images):
    with torch.no_grad():
        return theirs.run_with_cache(images)[1]


@pytest.fixture(scope="module")
def recording(model, images):
    names = (*HOOKS, "attention")
    with torch.no_grad(), record(model, tensors=names) as recording:
        model(pixel_values=images)
    return recording


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("name", HOOKS)
def test_queries_keys_values_and_outputs_are_theirs(recording, cache, layer, name):
    expected = cache[f"blocks.{layer}.attn.{HOOKS[name]}"].transpose(1, 2)
    torch.testing.assert_close(getattr(recording[layer], name), expected, **CLOSE)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_maps_are_theirs(recording, cache, layer):
    torch.testing.assert_close(recording[layer].attention, cache[f"blocks.{layer}.attn.hook_pattern"], **CLOSE)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_statistics_are_those_of_their_maps(recording, cache, layer):
    pattern = cache[f"blocks.{layer}.attn.hook_pattern"]
    layout = TokenLayout(grid=(4, 4), has_class_token=True)
    ours = attention_statistics(recording[layer].query, recording[layer].key, layout, scaling=WIDTH**-0.5)
    torch.testing.assert_close(ours.entropy, torch.special.entr(pattern).sum(-1), **CLOSE)
    torch.testing.assert_close(ours.maximum, pattern.amax(-1), **CLOSE)
    torch.testing.assert_close(ours.received, pattern.sum(-2), **CLOSE)


def test_the_rollout_is_that_of_their_maps(recording, cache):
    product = torch.eye(17)
    for layer in range(LAYERS):
        mean = cache[f"blocks.{layer}.attn.hook_pattern"].mean(dim=1)
        product = (mean + torch.eye(17)) / 2 @ product
    torch.testing.assert_close(rollout(recording, start=0), product[:, 0], **CLOSE)


@pytest.mark.parametrize("name", ["query", "key", "value", "output"])
def test_an_edit_has_the_effect_that_it_has_there(model, theirs, images, name):
    layer, head = 1, 1

    def zero(tensor, hook):
        tensor[:, :, head] = 0  # (B, N, H, D)
        return tensor

    with torch.no_grad():
        hooks = [(f"blocks.{layer}.attn.{HOOKS[name]}", zero)]
        expected = theirs.run_with_hooks(images, fwd_hooks=hooks)
        untouched = model(pixel_values=images).logits
        with intervene(model, {(layer, name): Zero(heads=head)}):
            edited = model(pixel_values=images).logits
    torch.testing.assert_close(edited, expected, **CLOSE)
    assert not torch.allclose(edited, untouched, **CLOSE)
