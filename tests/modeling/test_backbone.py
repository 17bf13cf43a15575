"""AutoBackbone: feature maps of any stages, by name or by index, from a configuration or from a saved model."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoBackbone, AutoConfig

from qkvit import QKViTBackbone, QKViTForImageClassification

STAGES = ["stem", "stage1", "stage2", "stage3"]
CHOICES = st.sets(st.integers(0, 3), min_size=1).map(sorted)


@given(CHOICES, st.booleans())
@settings(max_examples=12)
def test_the_feature_maps_are_the_patches_after_the_chosen_layers(tiny_config, chosen, by_name):
    choice = {"out_features": [STAGES[i] for i in chosen]} if by_name else {"out_indices": chosen}
    torch.manual_seed(0)
    backbone = AutoBackbone.from_config(tiny_config(num_register_tokens=1, **choice)).eval()
    assert type(backbone) is QKViTBackbone
    assert list(backbone.out_features) == [STAGES[i] for i in chosen]
    assert backbone.channels == [32] * len(chosen)
    with torch.no_grad():
        out = backbone(torch.rand(2, 3, 16, 24), output_hidden_states=True)
        expected = [backbone.norm(out.hidden_states[i])[:, 2:].mT.reshape(2, 32, 4, 6) for i in chosen]
    assert len(out.feature_maps) == len(chosen)
    for found, map_ in zip(out.feature_maps, expected, strict=True):
        torch.testing.assert_close(found, map_, rtol=0, atol=0)


def test_negative_indices_count_from_the_last_stage(tiny_config):
    assert AutoBackbone.from_config(tiny_config(out_indices=[-3, -1])).out_features == ["stage1", "stage3"]


@pytest.mark.parametrize("choice", [{"out_indices": (0, 2)}, {"out_features": ["stem", "stage2"]}])
def test_a_saved_classifier_becomes_a_backbone_with_the_stages_asked_for_on_loading(
    tiny_model, pixels, tmp_path, choice
):
    model = tiny_model(QKViTForImageClassification)
    model.save_pretrained(tmp_path)
    backbone = QKViTBackbone.from_pretrained(tmp_path, **choice)
    assert backbone.out_features == ["stem", "stage2"]
    with torch.no_grad():
        hidden_states = model(pixels, output_hidden_states=True).hidden_states
        expected = [model.qkvit.norm(hidden_states[i])[:, 1:].mT.reshape(2, 32, 4, 4) for i in (0, 2)]
        for found, map_ in zip(backbone(pixels).feature_maps, expected, strict=True):
            torch.testing.assert_close(found, map_)
    backbone.save_pretrained(tmp_path / "backbone")
    assert AutoConfig.from_pretrained(tmp_path / "backbone").out_features == ["stem", "stage2"]


def test_stages_may_be_chosen_anew_on_a_model(tiny_model, pixels):
    backbone = tiny_model(QKViTBackbone, out_indices=[3])
    whole = tiny_model(QKViTBackbone, out_indices=[0, 1, 2, 3])(pixels).feature_maps
    backbone.out_indices = [1, 2]
    for found, map_ in zip(backbone(pixels).feature_maps, whole[1:3], strict=True):
        torch.testing.assert_close(found, map_, rtol=0, atol=0)


@pytest.mark.parametrize(
    "choice", [{"out_features": ["stage4"]}, {"out_features": ["stage2", "stage1"]}, {"out_indices": [0, 9]}]
)
def test_stages_that_do_not_exist_or_stand_in_another_order_are_refused(tiny_config, raises_sentence, choice):
    with raises_sentence(ValueError, "out_features"):
        tiny_config(**choice)


def test_the_gradient_of_a_feature_map_stops_at_its_layer(tiny_model, pixels):
    backbone = tiny_model(QKViTBackbone, out_features=["stage2"])
    backbone(pixels).feature_maps[0].square().sum().backward()
    assert backbone.layers[1].mlp.up_proj.weight.grad is not None
    assert backbone.layers[2].mlp.up_proj.weight.grad is None
