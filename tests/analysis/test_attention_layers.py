"""Which layers are meant, of a model with several towers too; and models that have none to see."""

import pytest
import torch
import transformers
from torch import nn

from qkvit import QKViTModel
from qkvit.analysis import Zero, intervene, record
from qkvit.analysis.attention_layers import attention_layers


@pytest.mark.parametrize("family", ["CLIP", "SigLIP"])
def test_of_two_towers_the_one_that_sees_is_meant(two_towers, pixels, family):
    model = two_towers(family)
    words = torch.tensor([[0, 5, 6, 1], [0, 7, 8, 1]])
    with torch.no_grad():
        expected = model(input_ids=words, pixel_values=pixels)
        with record(model) as recording, intervene(model, {(0, "value"): Zero()}):
            found = model(input_ids=words, pixel_values=pixels)
        with record(model.vision_model) as of_tower, intervene(model.vision_model, {(0, "value"): Zero()}):
            model(input_ids=words, pixel_values=pixels)
    assert torch.equal(found.text_embeds, expected.text_embeds)
    assert not torch.equal(found.image_embeds, expected.image_embeds)
    assert recording.layers == (0, 1, 2)
    assert recording[0].query.shape[2] == (17 if family == "CLIP" else 16)
    for layer in range(3):
        assert torch.equal(recording[layer].query, of_tower[layer].query)


def test_of_several_encoders_that_see_the_base_model_is_meant_or_the_choice_is_left_to_the_caller(
    family_model, raises_sentence
):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other = family_model("ViT"), family_model("DINOv2")

    with raises_sentence(ValueError, "Two has several encoders", "model.one, model.other"):
        record(Two())
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    sizes |= {f"decoder_{name}": size for name, size in sizes.items()}
    config = transformers.ViTMAEConfig(**sizes, image_size=16, patch_size=4)
    model = transformers.ViTMAEForPreTraining(config)
    assert list(attention_layers(model).values()) == list(attention_layers(model.vit).values())


def test_negative_numbers_count_from_the_end_of_the_layers_that_are_there(tiny_model, pixels, raises_sentence):
    model = tiny_model(QKViTModel, num_hidden_layers=4)
    del model.layers[1]
    with torch.no_grad(), record(model, [-1, -3]) as recording:
        model(pixels)
    assert recording.layers == (3, 0)
    assert recording[-1] is recording[3]
    for wrong in (1, -4):
        with raises_sentence(ValueError, f"layer {wrong} of a model with layers 0, 2, 3; pass", "from -3 to -1"):
            record(model, wrong)


def test_a_model_without_the_interface_is_refused_by_name(raises_sentence):
    for model in (
        transformers.CvtModel(transformers.CvtConfig(embed_dim=[6, 6, 6])),
        nn.TransformerEncoderLayer(8, 2),
        nn.Linear(2, 2),
    ):
        for enter in (lambda model: record(model), lambda model: intervene(model, {(0, "key"): Zero()})):
            with raises_sentence(
                ValueError, f"{type(model).__name__} computes attention without transformers.Attention"
            ):
                enter(model)
    with raises_sentence(ValueError, "model is a str; pass a transformers model"):
        record("facebook/dinov2-small")
