"""`LayerRecord.statistics`: those of the maps that the model itself gives, without a detail that could be left out."""

import pytest
import torch

from qkvit.analysis import FUSED, TokenLayout, Zero, intervene, record, rollout


def entropy_of(maps):
    return torch.special.entr(maps).sum(-1)


def test_the_mask_is_not_left_out(biased_model):
    images = torch.rand(2, 3, 16, 16)
    with record(biased_model) as recording:
        biased_model(images)
    found = recording[1].statistics(TokenLayout.from_model(biased_model, 16), "entropy").entropy
    biased_model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = biased_model(images, output_attentions=True).attentions
    torch.testing.assert_close(found, entropy_of(maps[1]), rtol=1e-4, atol=1e-6)


def test_values_are_taken_where_they_were_recorded(tiny_model, pixels):
    model = tiny_model()
    layout = TokenLayout.from_model(model, tuple(pixels.shape[-2:]))
    with torch.no_grad(), record(model, tensors=("query", "key", "value", "output")) as recording:
        model(pixels)
    projection = model.base_model.layers[0].attention.o_proj
    s = recording[0].statistics(layout, output_projection=projection, backend="reference")
    torch.testing.assert_close(s.output_share.sum(dim=1), torch.ones(len(pixels), dtype=s.output_share.dtype))
    blocks = projection.weight.unflatten(1, (model.config.num_attention_heads, -1))
    parts = torch.einsum("bhnd,chd->bhnc", recording[0].output, blocks).norm(dim=-1)
    torch.testing.assert_close(s.output_norm.float(), parts, rtol=1e-4, atol=1e-6)
    with torch.no_grad(), record(model, tensors=("query", "key")) as recording:
        model(pixels)
    assert recording[0].statistics(layout).value_norm is None
    assert recording[0].statistics(layout, FUSED).distance is None


def test_what_it_cannot_say_is_refused(tiny_model, pixels, raises_sentence):
    model = tiny_model()
    layout = TokenLayout.from_model(model, tuple(pixels.shape[-2:]))
    with torch.no_grad(), intervene(model, {(0, "attention"): Zero()}), record(model) as recording:
        model(pixels)
    with raises_sentence(ValueError, "layer 0", "edit"):
        recording[0].statistics(layout)
    with torch.no_grad(), record(model, tensors="value") as recording:
        model(pixels)
    with raises_sentence(AttributeError, "the query of layer 0 was not recorded"):
        recording[0].statistics(layout)
    with torch.no_grad(), record(model, queries=0) as recording:
        model(pixels)
    with raises_sentence(ValueError, "key"):
        recording[0].statistics(layout)
    with torch.no_grad(), record(model, reduce={"query": lambda query: query.sum().item()}) as recording:
        model(pixels)
    with raises_sentence(ValueError, "the query of layer 0 was reduced to a float"):
        recording[0].statistics(layout)


@pytest.mark.parametrize("heads", [[1, 0], 1])
def test_the_mask_is_that_of_the_recorded_heads(biased_model, heads):
    """The bias of BEiT differs from head to head."""
    images, layout = torch.rand(2, 3, 16, 16), TokenLayout.from_model(biased_model, 16)
    with torch.no_grad(), record(biased_model, tensors=("query", "key", "attention"), heads=heads) as recording:
        biased_model(images)
    found = recording[1].statistics(layout, "entropy").entropy
    torch.testing.assert_close(found, entropy_of(recording[1].attention), rtol=1e-4, atol=1e-6)
    row = torch.eye(17)[:1]
    for layer in (1, 0):
        row = (row + row @ recording[layer].attention.mean(1)) / 2
    torch.testing.assert_close(rollout(recording, start=0), row[:, 0], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edited_output_is_what_is_measured(tiny_model, pixels, raises_sentence, dtype):
    model, pixels = tiny_model().to(dtype), pixels.to(dtype)
    layout = TokenLayout.from_model(model, 16)
    edits = {(-1, "output"): Zero(heads=0)}
    with torch.no_grad(), intervene(model, edits), record(model, tensors=("query", "key", "value", "output")) as whole:
        model(pixels)
    found = whole[-1].statistics(layout).output_norm
    assert found[:, 0].max() == 0
    assert found[:, 1].min() > 0
    with torch.no_grad(), intervene(model, edits), record(model) as recording:
        model(pixels)
    with raises_sentence(ValueError, "output of layer 2", "record it too"):
        recording[-1].statistics(layout)
    assert recording[-1].statistics(layout, "entropy").output_norm is None
