"""Saving and loading on this machine: what is saved comes back."""

import pytest
import torch
from transformers import (
    AutoBackbone,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
)

from qkvit import QKViTBackbone, QKViTForImageClassification, QKViTForMaskedImageModeling, QKViTModel
from qkvit.modeling.pretrained_qkvit import QKViTPreTrainedModel

EVERYTHING = {
    "position_embedding": "rope2d",
    "use_distillation_token": True,
    "num_register_tokens": 2,
    "layer_scale_init_value": 0.1,
    "qk_norm": True,
    "image_size": (16, 24),
}
HEADS = {
    QKViTModel: AutoModel,
    QKViTForImageClassification: AutoModelForImageClassification,
    QKViTForMaskedImageModeling: AutoModelForMaskedImageModeling,
}


def assert_same_weights(first: torch.nn.Module, second: torch.nn.Module) -> None:
    expected = second.state_dict()
    assert first.state_dict().keys() == expected.keys()
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize("model_class", HEADS)
@pytest.mark.parametrize("loader", ["its class", "the Auto class"])
def test_a_saved_model_comes_back_to_the_bit(tiny_model, tmp_path, model_class, loader):
    model = tiny_model(model_class, **EVERYTHING)
    model.save_pretrained(tmp_path)
    load = (model_class if loader == "its class" else HEADS[model_class]).from_pretrained
    loaded = load(tmp_path)
    assert type(loaded) is model_class
    assert not loaded.training
    assert_same_weights(loaded, model)
    pixels = torch.rand(1, 3, 16, 24)
    torch.testing.assert_close(loaded(pixels).to_tuple()[0], model(pixels).to_tuple()[0])


def test_a_backbone_comes_back_with_its_stages(tiny_model, tmp_path):
    model = tiny_model(QKViTBackbone, out_features=["stage1", "stage3"])
    model.save_pretrained(tmp_path)
    loaded = QKViTBackbone.from_pretrained(tmp_path)
    assert loaded.out_features == ["stage1", "stage3"]
    assert_same_weights(loaded, model)
    again = AutoBackbone.from_config(loaded.config)
    assert type(again) is QKViTBackbone


def test_a_base_model_goes_into_a_head_and_back(tiny_model, tmp_path):
    base = tiny_model(QKViTModel, **EVERYTHING)
    base.save_pretrained(tmp_path / "base")
    with_head = AutoModelForImageClassification.from_pretrained(tmp_path / "base", num_labels=7)
    assert with_head.classifier.weight.shape == (7, 32)
    assert_same_weights(with_head.qkvit, base)
    with_head.save_pretrained(tmp_path / "head")
    assert_same_weights(AutoModel.from_pretrained(tmp_path / "head"), base)
    backbone = QKViTBackbone.from_pretrained(tmp_path / "head")
    assert_same_weights(backbone.layers, base.layers)


def test_a_head_for_other_labels_is_made_anew(saved):
    model = QKViTForImageClassification.from_pretrained(saved, num_labels=9, ignore_mismatched_sizes=True)
    assert model.config.num_labels == 9
    assert_same_weights(model.qkvit, QKViTModel.from_pretrained(saved))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_model_loads_in_half_precision_and_remembers_it(tiny_model, tmp_path, dtype):
    model = tiny_model(**EVERYTHING)
    model.save_pretrained(tmp_path / "full")
    half = AutoModelForImageClassification.from_pretrained(tmp_path / "full", dtype=dtype)
    assert {parameter.dtype for parameter in half.parameters()} == {dtype}
    assert_same_weights(half, model.to(dtype))
    half.save_pretrained(tmp_path / "half")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "half")
    assert again.dtype == dtype
    assert_same_weights(again, half)


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_a_model_loads_with_a_device_map(saved, pixels, device_map):
    model = QKViTForImageClassification.from_pretrained(saved, device_map=device_map)
    expected = QKViTForImageClassification.from_pretrained(saved)
    assert_same_weights(model, expected)
    torch.testing.assert_close(model(pixels).logits, expected(pixels).logits)


def test_layers_left_on_the_disk_give_the_same_outputs_maps_and_qkv(saved, pixels, tmp_path):
    whole = QKViTForImageClassification.from_pretrained(saved)
    parts = [name for name, _ in whole.qkvit.named_children() if name != "layers"]
    device_map = {"classifier": "disk", **{f"qkvit.{name}": "cpu" for name in parts}}
    device_map |= {"qkvit.layers.0": "cpu", "qkvit.layers.1": "disk", "qkvit.layers.2": "disk"}
    model = QKViTForImageClassification.from_pretrained(saved, device_map=device_map, offload_folder=tmp_path)
    assert next(model.qkvit.layers[1].parameters()).device.type == "meta"  # its weights are read when it is called
    for implementation in ("sdpa", "eager"):
        whole.set_attn_implementation(implementation)
        model.set_attn_implementation(implementation)
        with torch.no_grad():
            expected, found = (each(pixels, output_attentions=True, output_qkv=True) for each in (whole, model))
        torch.testing.assert_close(found.logits, expected.logits)
        for name in ("attentions", "queries", "keys", "values"):
            torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("fields", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_model_is_saved_in_shards_and_comes_back(tiny_model, tmp_path, fields):
    model = tiny_model(**fields)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 3
    assert not (tmp_path / "model.safetensors").exists()
    assert_same_weights(AutoModelForImageClassification.from_pretrained(tmp_path), model)


@pytest.mark.parametrize("implementation", ["eager", "sdpa", "flex_attention"])
def test_the_attention_implementation_is_chosen_when_a_model_is_loaded(saved, implementation):
    model = AutoModelForImageClassification.from_pretrained(saved, attn_implementation=implementation)
    assert model.config._attn_implementation == implementation
    assert model.qkvit.layers[0].attention.config._attn_implementation == implementation


def test_sdpa_is_the_default(saved):
    assert AutoModel.from_pretrained(saved).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("source", [*HEADS, QKViTBackbone])
@pytest.mark.parametrize("target", [*HEADS, QKViTBackbone])
@pytest.mark.parametrize("fields", [{}, EVERYTHING, {"pooling": "attention"}], ids=["plain", "everything", "pooled"])
def test_every_model_loads_from_every_other(tiny_model, tmp_path, source, target, fields):
    model = tiny_model(source, **fields)
    model.save_pretrained(tmp_path)
    loaded = target.from_pretrained(tmp_path)
    assert_same_weights(loaded.base_model.layers, model.base_model.layers)


def test_the_report_is_given_to_who_asks_for_it(saved):
    model, report = AutoModelForImageClassification.from_pretrained(saved, output_loading_info=True)
    assert type(model) is QKViTForImageClassification
    assert not report["missing_keys"]


def test_a_configuration_in_hand_stands_in_for_one_in_the_folder(folder, pixels):
    expected = QKViTForImageClassification.from_pretrained(folder)
    (folder / "config.json").unlink()
    model = QKViTForImageClassification.from_pretrained(folder, config=expected.config)
    assert_same_weights(model, expected)


def test_a_state_dict_in_hand_may_lack_tensors(saved):
    config = QKViTModel.from_pretrained(saved).config
    model = QKViTModel.from_pretrained(None, config=config, state_dict={"norm.weight": torch.full((32,), 2.0)})
    assert (model.norm.weight == 2).all()


class WithAHeadOfItsOwn(QKViTForImageClassification):
    def __init__(self, config):
        super().__init__(config)
        self.segmentation_head = torch.nn.Sequential(torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
        self.post_init()


def test_a_head_of_the_user_s_own_may_be_new(folder):
    assert WithAHeadOfItsOwn.from_pretrained(folder).segmentation_head[1].out_features == 2


def test_a_part_of_the_user_s_own_may_have_the_name_of_one_of_ours(tiny_config, tiny_model, tmp_path):
    class Mine(QKViTPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.qkvit = QKViTModel(config)
            self.layers = torch.nn.Linear(32, 2)
            self.post_init()

    tiny_model().save_pretrained(tmp_path)
    mine = Mine.from_pretrained(tmp_path)
    assert torch.equal(mine.qkvit.norm.weight, tiny_model().qkvit.norm.weight)
