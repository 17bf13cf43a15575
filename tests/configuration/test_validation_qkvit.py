"""What QKViTConfig refuses, in one sentence each."""

import json
import math

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from qkvit import QKViTConfig, QKViTForImageClassification

INTEGERS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_channels", "num_register_tokens")
OPTIONAL_INTEGERS = ("head_dim", "intermediate_size", "pooler_size")
RATES = ("drop_path_rate", "hidden_dropout_prob", "attention_probs_dropout_prob", "patch_drop_rate", "label_smoothing")
POSITIVE_NUMBERS = ("layer_norm_eps", "initializer_range", "rope_theta")
FLAGS = (
    "query_bias", "key_bias", "value_bias", "output_bias", "mlp_bias", "qk_norm", "use_class_token",
    "use_distillation_token", "use_pre_norm", "apply_layernorm", "reshape_hidden_states", "patch_bias",
    "use_mask_token", "position_antialias", "position_float32", "use_distillation_classifier",
)  # fmt: skip
CHOICES = (
    "mlp_type", "norm_type", "position_embedding", "pooling", "classification_loss", "position_coverage",
    "norm_position",
)  # fmt: skip
SIZES = ("image_size", "patch_size")

no_number = st.sampled_from(["12", "", b"1", [], [1], {}, (), object, 1j])
no_real = st.sampled_from([math.nan, math.inf, -math.inf])
# What each kind of field can never be.
NEVER = {
    INTEGERS: st.one_of(no_number, no_real, st.booleans(), st.none(), st.integers(max_value=-1), st.floats()),
    OPTIONAL_INTEGERS: st.one_of(no_number, no_real, st.booleans(), st.integers(max_value=0), st.floats()),
    RATES: st.one_of(
        no_number, no_real, st.booleans(), st.none(), st.floats(max_value=-1e-6), st.floats(min_value=1), st.integers(1)
    ),
    POSITIVE_NUMBERS: st.one_of(
        no_number, no_real, st.booleans(), st.none(), st.floats(max_value=0), st.integers(max_value=0)
    ),
    ("layer_scale_init_value",): st.one_of(no_number, no_real, st.booleans()),
    FLAGS: st.one_of(no_number, no_real, st.none(), st.integers(), st.floats()),
    CHOICES: st.one_of(no_number, no_real, st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    ("pooling_coverage",): st.one_of(no_number, no_real, st.booleans(), st.integers(), st.text(max_size=4)),
    ("hidden_act", "pooler_act"): st.one_of(no_number, st.booleans(), st.integers(), st.sampled_from(["gelo", "GELU"])),
    SIZES: st.one_of(
        st.sampled_from(["12", b"1", {}, object, 1j]),
        no_real,
        st.booleans(),
        st.none(),
        st.integers(max_value=0),
        st.floats(),
        st.lists(st.integers(8, 16), max_size=1),
        st.lists(st.integers(8, 16), min_size=3, max_size=4),
        st.tuples(st.integers(8, 16), st.one_of(st.booleans(), st.floats(), st.none(), st.integers(max_value=0))),
        st.tuples(st.integers(8, 16), st.text(max_size=2)).map(list),
    ),
    ("num_labels",): st.one_of(no_number, no_real, st.booleans(), st.none(), st.integers(max_value=-1), st.floats()),
    ("problem_type",): st.one_of(no_number, st.booleans(), st.integers(), st.just("classification")),
    ("dtype", "torch_dtype"): st.sampled_from(["float33", "nn", "", 3]),
    ("attn_implementation", "_attn_implementation", "experts_implementation", "quantization_config"): st.sampled_from(
        [3, True, ["eager"]]
    ),
    ("architectures",): st.sampled_from([3, "QKViTModel", True, [3], {"QKViTModel": 3}]),
    ("auto_map",): st.sampled_from([3, "QKViTModel", True, ["QKViTModel"], {"AutoModel": 3}]),
    ("is_encoder_decoder", "tie_word_embeddings", "use_cache"): st.one_of(no_number, no_real, st.integers()),
    ("tie_last_hidden_states",): st.one_of(no_number, no_real, st.integers(), st.just(True)),
    ("chunk_size_feed_forward",): st.one_of(no_number, no_real, st.booleans()),
    ("transformers_version",): st.one_of(no_real, st.sampled_from([5, True, ["5.23"]])),
    ("id2label",): st.sampled_from(["cat", ["cat", "dog"], 3]),
    ("label2id",): st.sampled_from(["cat", ["cat", "dog"], 3]),
    ("return_dict",): st.one_of(no_number, no_real, st.none(), st.integers()),
    ("output_hidden_states",): st.one_of(st.sampled_from(["all", [0.5], ["a"], {}]), st.floats()),
    ("output_attentions",): st.one_of(st.sampled_from(["all", [0.5], [99], [True], (0, 99), {}, -13, 12]), st.floats()),
}  # fmt: skip


@given(st.data())
@settings(max_examples=400)
def test_a_value_that_a_field_can_never_have_is_refused_in_one_sentence(raises_sentence, data):
    names = data.draw(st.sampled_from(list(NEVER)))
    name, value = data.draw(st.sampled_from(names)), data.draw(NEVER[names])
    with raises_sentence(ValueError, name, " ".join(repr(value).split())[:40]):
        QKViTConfig(**{name: value})


@pytest.mark.parametrize("name", RATES)
def test_a_rate_goes_from_zero_up_to_below_one(raises_sentence, name):
    for rate in (0, 0.0, 0.999):
        assert getattr(QKViTConfig(**{name: rate}), name) == rate
    for rate in (1, 1.0, -1e-9):
        with raises_sentence(ValueError, f"{name}={rate}", "[0, 1)"):
            QKViTConfig(**{name: rate})


@pytest.mark.parametrize("name", [name for names in NEVER for name in names])
def test_a_wrong_type_is_refused_for_every_field(raises_sentence, name):
    with raises_sentence(ValueError, name, "Ellipsis"):
        QKViTConfig(**{name: ...})


@pytest.mark.parametrize("name", ["hidden_size", "qk_norm", "pooling", "image_size"])
def test_a_wrong_type_is_refused_when_a_field_is_set_later(raises_sentence, name):
    config = QKViTConfig()
    with raises_sentence(ValueError, f"{name}=3.5"):
        setattr(config, name, 3.5)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hidden_size": 100, "num_attention_heads": 12}, ["num_attention_heads=12", "hidden_size=100", "96 or 108"]),
        ({"hidden_size": 2, "num_attention_heads": 3}, ["num_attention_heads=3", "hidden_size=2", "hidden_size=3"]),
        ({"image_size": 30}, ["patch_size 16", "image_size 30", "image_size=32", "patch_size=15"]),
        ({"image_size": (32, 30)}, ["patch_size 16", "image_size 30", "(width)"]),
        ({"image_size": (30, 32)}, ["(height)"]),
        ({"image_size": 8}, ["patch_size 16", "image_size 8", "patch_size=8"]),
        ({"use_class_token": False}, ["pooling='class'", "use_class_token=False", "pooling='mean'"]),
        ({"use_class_token": False, "pooling": "class_mean"}, ["pooling='class_mean'", "use_class_token=True"]),
        ({"use_distillation_token": True, "pooling": "mean"}, ["pooling='mean'", "pooling='class'"]),
        ({"position_embedding": "rope2d", "head_dim": 6}, ["head_dim=6", "head_dim=8", "rope2d"]),
        ({"position_embedding": "sincos2d", "hidden_size": 14, "num_attention_heads": 2}, ["=14", "hidden_size=16"]),
        ({"position_embedding": "sincos2d", "hidden_size": 4, "num_attention_heads": 2}, ["=4", "hidden_size=8"]),
        ({"norm_position": "after_pooling", "use_distillation_token": True}, ["'after_pooling'", "'before_pooling'"]),
        ({"pooler_size": 8}, ["pooler_size=8", "pooler_act=None", "pooler_act='tanh'"]),
        ({"pooling_coverage": "all"}, ["pooling_coverage='all'", "pooling='class'", "pooling='mean'"]),
        ({"label_smoothing": 0.1, "problem_type": "regression"}, ["label_smoothing=0.1", "regression"]),
        ({"label_smoothing": 0.1, "problem_type": "multi_label_classification"}, ["label_smoothing=0.1", "0.0"]),
        ({"out_features": ["stage13"]}, ["out_features", "stage13", "stage12"]),
        ({"out_indices": 3}, ["out_indices=3", "list of integers"]),
        ({"out_indices": [13]}, ["out_indices", "[13]", "stage12", "out_indices=[0, 12]"]),
        ({"out_indices": [1, 1]}, ["duplicates", "[1, 1]", "out_features=['stem', 'stage12']"]),
        ({"out_features": ["stage2", "stage1"]}, ["same order", "out_indices=[0, 12]"]),
        ({"out_features": ["stage2"], "out_indices": [1]}, ["same stages", "out_indices=[0, 12]"]),
        ({"id2label": {"x": "a"}}, ["id2label={'x': 'a'}", "'x'", "no integer"]),
        ({"id2label": {"0": "a", "00": "b"}}, ["id2label={'0': 'a', '00': 'b'}", "from 0 to 1 once"]),
        ({"id2label": {1: "a", 2: "b"}}, ["id2label={1: 'a', 2: 'b'}", "from 0 to 1 once"]),
        ({"id2label": {0: "a", 1: 7}}, ["7", "name"]),
        ({"num_labels": 5, "id2label": {0: "a", 1: "b"}}, ["num_labels=5", "id2label={0: 'a', 1: 'b'}", "one of them"]),
        ({"id2label": {0: "a", 1: "b"}, "label2id": {"a": 1, "b": 0}}, ["label2id={'a': 1, 'b': 0}", "leave label2id"]),
        ({"label2id": {"a": 0, "b": 2}}, ["label2id={'a': 0, 'b': 2}", "from 0 to 1 once"]),
        ({"label2id": {"a": 0, "b": 0}}, ["label2id={'a': 0, 'b': 0}", "from 0 to 1 once"]),
        ({"label2id": {"a": "0", "b": "x"}}, ["label2id={'a': '0', 'b': 'x'}", "from 0 to 1 once"]),
        ({"label2id": {"a": 0, "b": 1}, "num_labels": 3}, ["num_labels=3", "of 2 labels", "one of them"]),
        ({"label_smoothing": 0.1, "num_labels": 1}, ["label_smoothing=0.1", "num_labels=1"]),
        ({"classification_loss": "binary_cross_entropy", "num_labels": 1}, ["binary", "num_labels=1", "num_labels=2"]),
        ({"classification_loss": "binary_cross_entropy", "problem_type": "regression"}, ["binary", "'regression'"]),
        (
            {"classification_loss": "binary_cross_entropy", "problem_type": "multi_label_classification"},
            ["classification_loss='binary_cross_entropy'", "multi_label"],
        ),
        ({"per_layer_config": {0: {"hidden_size": 3}}}, ["per_layer_config={0:", "not supported", "leave it out"]),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_refused_with_what_would_do(raises_sentence, fields, words):
    with raises_sentence(ValueError, *words):
        QKViTConfig(**fields)


@pytest.mark.parametrize("text", ["[1]", "3", "null", '"config"', "{", "", "{'a': 1}"])
def test_a_file_that_is_no_json_object_is_refused(raises_sentence, tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(text)
    for source in (tmp_path, path):
        with raises_sentence(OSError, str(path), "copy, download or save it again"):
            QKViTConfig.from_pretrained(source)


def test_an_empty_folder_is_refused(raises_sentence, tmp_path):
    with raises_sentence(OSError, str(tmp_path), "no config.json", "save_pretrained"):
        QKViTConfig.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [("hidden_sizes", "did you mean 'hidden_size'?"), ("num_layers", "did you mean 'num_"), ("xyzzy", "take it out")],
)
def test_an_unknown_field_is_refused(raises_sentence, name, hint):
    with raises_sentence(ValueError, f"{name}=3", hint):
        QKViTConfig(**{name: 3})


@given(st.text("abcdefghijklmnopqrstuvwxyz_", min_size=1, max_size=20))
def test_any_unknown_field_is_refused(raises_sentence, name):
    assume(not name.startswith("_") and not hasattr(QKViTConfig(), name))
    with raises_sentence(ValueError, f"{name}='value'"):
        QKViTConfig(**{name: "value"})


@pytest.mark.parametrize(
    "field", [{"xyzzy": 1}, {"hidden_size": "big"}, {"pooling": "max"}, {"patch_size": [16.0, 16]}]
)
def test_an_unknown_or_ill_typed_field_in_a_file_is_refused(raises_sentence, tmp_path, field):
    QKViTConfig().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **field}))
    ((name, value),) = field.items()
    with raises_sentence(ValueError, f"{name}={value!r}"):
        QKViTConfig.from_pretrained(tmp_path)


def test_the_configuration_of_another_kind_of_model_is_refused(raises_sentence, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": 32}')
    with raises_sentence(ValueError, "model_type='bert'", "qkvit"):
        QKViTConfig.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "vit", "hidden_size": 32}')
    with raises_sentence(ValueError, "'vit' checkpoint", "qkvit convert"):
        QKViTConfig.from_pretrained(tmp_path)


def test_a_model_is_not_built_from_fields_that_no_longer_go_together(raises_sentence, tiny_config):
    config = tiny_config()
    config.use_class_token = False
    with raises_sentence(ValueError, "use_class_token=False"):
        QKViTForImageClassification(config)


def test_fields_that_no_longer_go_together_are_not_saved(raises_sentence, tiny_config, tmp_path):
    config = tiny_config()
    config.image_size = 17
    with raises_sentence(ValueError, "image_size 17"):
        config.save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("problem_type", "regresion"),
        ("id2label", {0: "a", 2: "b"}),
        ("id2label", {1: "a", 2: "b", 3: "c"}),
        ("output_attentions", [99]),
        ("output_hidden_states", "all"),
        ("return_dict", "no"),
        ("tie_last_hidden_states", True),
    ],
)
def test_what_is_set_later_is_checked_before_it_is_used_or_saved(tiny_config, tmp_path, raises_sentence, name, value):
    def changed():
        config = tiny_config()
        setattr(config, name, value)  # where transformers knows the field's type, refused here already
        return config

    with raises_sentence(ValueError, f"{name}="):
        QKViTForImageClassification(changed())
    with raises_sentence(ValueError, f"{name}="):
        changed().save_pretrained(tmp_path / "saved")
