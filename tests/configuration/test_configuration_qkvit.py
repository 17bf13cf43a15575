"""QKViTConfig: what follows from its fields, and the round trip through its file."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoConfig, PreTrainedModel

from qkvit import NAMED_SIZES, QKViTConfig, QKViTForImageClassification

# ---- valid configurations, drawn at random

sides = st.integers(1, 3)


@st.composite
def valid_fields(draw) -> dict:
    """Fields that go together: whatever they are, the model can be built."""
    patch = draw(st.one_of(st.integers(1, 4), st.tuples(st.integers(1, 4), st.integers(1, 4))))
    patch_height, patch_width = (patch, patch) if isinstance(patch, int) else patch
    if isinstance(patch, int) and draw(st.booleans()):
        image = patch * draw(sides)
    else:
        image = (patch_height * draw(sides), patch_width * draw(sides))
    pooling = draw(st.sampled_from(["class", "mean", "class_mean", "attention"]))
    class_token = pooling in ("class", "class_mean") or draw(st.booleans())
    distilled = class_token and pooling == "class" and draw(st.booleans())
    pooler_act = draw(st.sampled_from([None, "tanh"]))
    norm_positions = ["before_pooling", "none"] if distilled else ["before_pooling", "after_pooling", "none"]
    heads = draw(st.integers(1, 3))
    rate = st.one_of(st.just(0), st.floats(0, 0.9))
    fields = {
        "hidden_size": heads * 4 * draw(st.integers(2, 3)),
        "num_hidden_layers": draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "head_dim": draw(st.sampled_from([None, 4, 8])),
        "intermediate_size": draw(st.one_of(st.none(), st.integers(1, 20))),
        "mlp_type": draw(st.sampled_from(["mlp", "swiglu"])),
        "norm_type": draw(st.sampled_from(["layernorm", "rmsnorm"])),
        "layer_norm_eps": draw(st.floats(1e-12, 1e-3)),
        "layer_scale_init_value": draw(st.one_of(st.none(), st.floats(-1, 1))),
        "position_embedding": draw(st.sampled_from(["learned", "sincos2d", "rope2d", "none"])),
        "rope_theta": draw(st.one_of(st.integers(1, 1000), st.floats(1, 1000))),
        "num_register_tokens": draw(st.integers(0, 3)),
        "image_size": image,
        "patch_size": patch,
        "num_channels": draw(st.integers(1, 4)),
        "pooling": pooling,
        "use_class_token": class_token,
        "pooling_coverage": None if pooling == "class" else draw(st.sampled_from([None, "patches", "all"])),
        "pooler_act": pooler_act,
        "pooler_size": None if pooler_act is None else draw(st.one_of(st.none(), st.integers(1, 8))),
        "norm_position": draw(st.sampled_from(norm_positions)),
        "position_coverage": draw(st.sampled_from(["patches", "class", "all"])),
        "use_distillation_token": distilled,
        "num_labels": draw(st.integers(0, 4)),
        "initializer_range": draw(st.floats(1e-3, 1)),
    }
    for name in ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "patch_drop_rate"):
        fields[name] = draw(rate)
    for name in (
        "query_bias", "key_bias", "value_bias", "output_bias", "mlp_bias", "patch_bias", "qk_norm", "use_pre_norm",
        "use_mask_token", "position_antialias", "position_float32", "use_distillation_classifier",
    ):  # fmt: skip
        fields[name] = draw(st.booleans())
    return fields


@given(valid_fields())
@settings(max_examples=40)
def test_a_valid_configuration_survives_saving_and_loading(tmp_path_factory, fields):
    folder = tmp_path_factory.mktemp("config")
    config = QKViTConfig(**fields)
    config.save_pretrained(folder)
    loaded = QKViTConfig.from_pretrained(folder)
    for field in dataclasses.fields(QKViTConfig):
        assert getattr(loaded, field.name) == getattr(config, field.name) or field.name == "transformers_version"
    assert loaded.num_labels == config.num_labels
    again = QKViTConfig.from_dict(json.loads((folder / "config.json").read_text()))
    assert again.to_dict() == loaded.to_dict()


@given(valid_fields())
@settings(max_examples=40)
def test_a_valid_configuration_builds_a_model_that_runs_and_learns(fields):
    config = QKViTConfig(**fields)
    model = QKViTForImageClassification(config)
    height, width = config.image_size if isinstance(config.image_size, tuple) else (config.image_size,) * 2
    model.train()
    out = model(torch.rand(2, config.num_channels, height, width))
    assert out.logits.shape == (2, config.num_labels or config.pooled_size)
    out.logits.sum().backward()
    model.eval()
    out = model(torch.rand(1, config.num_channels, height, width), output_attentions=True, output_qkv=-1)
    num_tokens = config.num_prefix_tokens + config.grid[0] * config.grid[1]
    assert out.attentions[0].shape == (1, config.num_attention_heads, num_tokens, num_tokens)
    assert out.queries[-1].shape == (1, config.num_attention_heads, num_tokens, config.head_dim)
    assert out.logits.isfinite().all()


def test_a_configuration_can_be_copied_and_pickled(tiny_config):
    config = tiny_config(patch_size=(4, 8), out_features=["stage1"])
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert pickle.loads(pickle.dumps(config)).to_dict() == config.to_dict()


# ---- what follows from the fields


def test_the_defaults_are_vit_base_16_at_224():
    config = QKViTConfig()
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == NAMED_SIZES["base"]
    assert (config.image_size, config.patch_size, config.num_channels, config.head_dim) == (224, 16, 3, 64)
    assert (config.hidden_act, config.pooling, config.position_embedding) == ("gelu", "class", "learned")


def test_the_defaults_have_as_many_parameters_as_vit_base():
    with torch.device("meta"):
        model = QKViTForImageClassification(QKViTConfig(num_labels=1000))
    assert model.num_parameters() == 86_567_656  # ViT-B/16 with its classifier, of the paper


@pytest.mark.parametrize("size", NAMED_SIZES)
def test_every_named_size_makes_the_configuration_of_its_paper(size):
    published = {  # width, depth, heads, width of the MLP
        "tiny": (192, 12, 3, 768),
        "small": (384, 12, 6, 1536),
        "base": (768, 12, 12, 3072),
        "large": (1024, 24, 16, 4096),
        "so400m": (1152, 27, 16, 4304),
        "huge": (1280, 32, 16, 5120),
        "giant": (1408, 40, 16, 6144),
    }[size]
    config = QKViTConfig.from_size(size, patch_size=14)
    sizes = (config.hidden_size, config.num_hidden_layers, config.num_attention_heads, config.intermediate_size)
    assert sizes == published
    assert config.head_dim * config.num_attention_heads == config.hidden_size
    assert config.patch_size == 14


def test_fields_given_to_a_named_size_override_it():
    config = QKViTConfig.from_size("tiny", num_hidden_layers=2, intermediate_size=100, num_labels=7)
    assert (config.hidden_size, config.num_hidden_layers) == (192, 2)
    assert (config.intermediate_size, config.num_labels) == (100, 7)


def test_an_unknown_size_is_refused_with_the_known_ones(raises_sentence):
    with raises_sentence(ValueError, "size='medium'", "small"):
        QKViTConfig.from_size("medium")


def test_swiglu_has_as_many_parameters_as_the_mlp_to_a_hundredth():
    for size in ("small", "base", "large"):
        width = NAMED_SIZES[size][0]
        config = QKViTConfig.from_size(size, mlp_type="swiglu")
        assert config.intermediate_size % 8 == 0
        assert math.isclose(3 * width * config.intermediate_size, 2 * width * 4 * width, rel_tol=0.01)
        assert config.hidden_act == "silu"


def test_the_grid_the_prefix_and_the_pooled_size_follow_from_the_fields():
    config = QKViTConfig(image_size=(32, 48), patch_size=(8, 16), num_register_tokens=4, use_distillation_token=True)
    assert config.grid == (4, 3)
    assert config.num_prefix_tokens == 6
    assert config.pooled_size == 768
    assert QKViTConfig(pooling="class_mean").pooled_size == 2 * 768


def test_the_pooled_size_is_the_poolers_where_there_is_one():
    assert QKViTConfig(pooler_act="tanh").pooler_size == 768
    assert QKViTConfig(pooler_act="tanh", pooling="class_mean").pooled_size == 2 * 768
    assert QKViTConfig(pooler_act="tanh", pooler_size=100).pooled_size == 100


def test_learned_positions_cover_what_their_coverage_says():
    fields = {"use_distillation_token": True, "num_register_tokens": 4}
    assert QKViTConfig(position_coverage="patches", **fields).num_placed_tokens == 0
    assert QKViTConfig(**fields).num_placed_tokens == 2
    assert QKViTConfig(position_coverage="all", **fields).num_placed_tokens == 6
    assert QKViTConfig(use_class_token=False, pooling="mean").num_placed_tokens == 0


def test_sizes_given_as_lists_become_pairs():
    config = QKViTConfig(image_size=[32, 48], patch_size=[8, 16])
    assert (config.image_size, config.patch_size) == ((32, 48), (8, 16))


def test_maps_may_be_asked_for_on_every_attention_implementation():
    for implementation in ("eager", "sdpa", "flex_attention"):
        config = QKViTConfig(attn_implementation=implementation, output_attentions=[0, -1])
        config.validate()
        assert config.output_attentions == [0, -1]


def test_stages_are_named_after_the_stem_and_the_layers():
    config = QKViTConfig(num_hidden_layers=2, out_indices=[0, 2])
    assert config.stage_names == ["stem", "stage1", "stage2"]
    assert config.out_features == ["stem", "stage2"]


def test_labels_are_taken_as_names_too_as_json_has_them():
    config = QKViTConfig(num_labels=2, id2label={"0": "a", "1": "b"}, label2id={"a": "0", "b": "1"})
    assert config.id2label == {0: "a", 1: "b"}


def test_labels_may_be_given_by_their_names_alone(tmp_path):
    config = QKViTConfig(label2id={"dog": 1, "cat": 0, "cow": 2})
    assert config.id2label == {0: "cat", 1: "dog", 2: "cow"}
    config.save_pretrained(tmp_path)
    assert QKViTConfig.from_pretrained(tmp_path).num_labels == 3


def test_chosen_layers_may_come_as_a_tuple():
    assert QKViTConfig(output_attentions=(0, -1)).output_attentions == [0, -1]
    config = QKViTConfig()
    config.output_attentions = (1,)
    assert config.output_attentions == [1]


@pytest.mark.parametrize("saved", [{"num_labels": 5}, {}, {"id2label": {0: "a", 1: "b", 2: "c"}}])
@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"num_labels": 4}, ["LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3"]),
        ({"id2label": {"0": "x", "1": "y"}, "label2id": {"x": "0", "y": "1"}}, ["x", "y"]),
        ({"id2label": {0: "x"}, "num_labels": 1}, ["x"]),
        ({"label2id": {"y": 1, "x": 0}}, ["x", "y"]),
    ],
)
def test_labels_given_when_a_file_is_loaded_replace_the_files(tmp_path, saved, given, names):
    QKViTConfig(**saved).save_pretrained(tmp_path)
    config = QKViTConfig.from_pretrained(tmp_path, **given)
    assert config.id2label == dict(enumerate(names))
    assert config.num_labels == len(names)


def test_the_files_names_stay_where_the_number_of_labels_does(tmp_path):
    QKViTConfig(id2label={0: "a", 1: "b", 2: "c"}).save_pretrained(tmp_path)
    assert QKViTConfig.from_pretrained(tmp_path, num_labels=3).id2label == {0: "a", 1: "b", 2: "c"}


def test_names_set_on_a_configuration_come_back_from_its_file(tmp_path):
    config = QKViTConfig(num_labels=3)
    config.id2label = {0: "a", 1: "b", 2: "c"}  # and label2id is left as it was
    config.save_pretrained(tmp_path)
    assert QKViTConfig.from_pretrained(tmp_path).id2label == config.id2label


@pytest.mark.parametrize("label2id", [{"a": 0, "b": 1, "c": 2}, {"a": 5}, {"LABEL_0": 0}])
def test_names_of_before_do_not_come_back_in_the_place_of_the_usual_ones(tmp_path, label2id):
    config = QKViTConfig()
    config.label2id = label2id
    config.save_pretrained(tmp_path)
    assert QKViTConfig.from_pretrained(tmp_path).id2label == config.id2label == {0: "LABEL_0", 1: "LABEL_1"}


def test_the_backbone_s_last_stage_follows_a_depth_that_is_changed_on_loading(tiny_config, tmp_path):
    tiny_config(num_hidden_layers=4).save_pretrained(tmp_path)
    config = QKViTConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    config.save_pretrained(tmp_path)  # validates, as making a model does
    assert config.out_features == ["stage2"]
    assert QKViTConfig.from_pretrained(tmp_path).stage_names == ["stem", "stage1", "stage2"]


def test_chosen_stages_are_saved(tiny_config, tmp_path):
    tiny_config(out_features=["stage1", "stage3"]).save_pretrained(tmp_path)
    assert QKViTConfig.from_pretrained(tmp_path).out_indices == [1, 3]


# ---- fields given when a file is loaded


@pytest.fixture(params=[QKViTConfig, AutoConfig])
def load(request):
    """Each `from_pretrained` in turn."""
    return request.param.from_pretrained


def test_a_misspelt_field_is_refused_when_a_file_is_loaded(tiny_config, tmp_path, load, raises_sentence):
    tiny_config().save_pretrained(tmp_path)
    with raises_sentence(ValueError, "hidden_sise=3", "did you mean 'hidden_size'?"):
        load(tmp_path, hidden_sise=3)


def test_what_is_no_field_is_refused_or_handed_back(tiny_config, tmp_path, raises_sentence):
    tiny_config().save_pretrained(tmp_path)
    with raises_sentence(ValueError, "foo=3 is not a field of QKViTConfig"):
        QKViTConfig.from_pretrained(tmp_path, foo=3)
    config, unused = QKViTConfig.from_pretrained(tmp_path, foo=3, hidden_size=64, return_unused_kwargs=True)
    assert (config.hidden_size, unused) == (64, {"foo": 3})


def test_arguments_of_the_models_loader_pass_through_autoconfig_as_pipelines_hand_them_over(tiny_config, tmp_path):
    tiny_config().save_pretrained(tmp_path)
    source = inspect.getsource(PreTrainedModel.from_pretrained)
    names = set(re.findall(r'kwargs\.pop\(\s*"(\w+)"', source)) - {"subfolder"}
    assert "device_map" in names
    AutoConfig.from_pretrained(tmp_path, **dict.fromkeys(names))


def test_fields_given_on_loading_are_checked_together_with_the_files(tiny_config, tmp_path, load, raises_sentence):
    tiny_config().save_pretrained(tmp_path)  # 16 pixels, patches of 4
    with raises_sentence(ValueError, "patch_size 5 does not divide image_size 16"):
        load(tmp_path, patch_size=5)
    with raises_sentence(ValueError, "hidden_size='big'"):
        load(tmp_path, hidden_size="big")
    assert load(tmp_path, patch_size=5, image_size=20).grid == (4, 4)


@pytest.mark.parametrize(
    ("saved", "given", "found"),
    [
        ({}, {"hidden_size": 48, "num_attention_heads": 3}, {"head_dim": 16, "intermediate_size": 192}),
        ({}, {"mlp_type": "swiglu"}, {"hidden_act": "silu", "intermediate_size": 88}),
        ({"pooler_act": "tanh"}, {"hidden_size": 64}, {"pooler_size": 64}),
        ({"pooler_act": "tanh"}, {"pooling": "class_mean"}, {"pooler_size": 64}),
        ({"pooler_act": "tanh"}, {"pooler_act": None}, {"pooler_size": None}),
        # What did not follow was chosen, and stays.
        ({"head_dim": 8, "intermediate_size": 99}, {"hidden_size": 64}, {"head_dim": 8, "intermediate_size": 99}),
        ({"hidden_act": "relu"}, {"mlp_type": "swiglu"}, {"hidden_act": "relu"}),
        ({"hidden_size": 30, "num_attention_heads": 4, "head_dim": 7}, {"hidden_size": 32}, {"head_dim": 7}),
        ({}, {"hidden_size": 64, "head_dim": 16}, {"head_dim": 16}),
    ],
)
def test_fields_that_follow_from_others_follow_those_given_on_loading(tiny_config, tmp_path, load, saved, given, found):
    tiny_config(**saved).save_pretrained(tmp_path)
    config = load(tmp_path, **given)
    assert {name: getattr(config, name) for name in found} == found


def test_stages_given_on_loading_replace_the_files(tiny_config, tmp_path):
    tiny_config(out_features=["stage1", "stage3"]).save_pretrained(tmp_path)
    config = QKViTConfig.from_pretrained(tmp_path, num_hidden_layers=2, out_indices=[2])
    assert config.out_features == ["stage2"]
