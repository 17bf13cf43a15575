"""`LayerRecord.statistics`: those of the maps that the model itself gives, without a detail that could be left out."""

import pytest
import torch

from qkvit.analysis import FUSED, TokenLayout, Zero, intervene, record


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


def test_chosen_heads_and_a_mask_of_each_head(biased_model, raises_sentence):
    """The mask is that of all heads."""
    with record(biased_model, heads=0) as recording:
        biased_model(torch.rand(2, 3, 16, 16))
    with pytest.raises(ValueError, match="mask"):
        recording[0].statistics(TokenLayout.from_model(biased_model, 16))
