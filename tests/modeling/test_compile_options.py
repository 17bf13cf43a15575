"""torch.compile(fullgraph=True) for each value of each field of the configuration.

The backend "eager" runs the captured graph as it is: that one graph was captured is what these tests ask, and its
output has to be the model's to the bit. `test_compile.py` has other backends, gradients and masks.
"""

import dataclasses
import types
from typing import Any, Literal, Union, get_args, get_origin

import pytest
import torch

from qkvit import QKViTBackbone, QKViTConfig, QKViTForImageClassification

# Together they have every value of every switch and choice, and every other field at its default and at another value.
CLASSIFIERS: dict[str, dict[str, Any]] = {
    "the defaults": {"num_attention_heads": 2},
    "rotary": {
        "head_dim": 8,
        "intermediate_size": 40,
        "mlp_type": "swiglu",
        "norm_type": "rmsnorm",
        "layer_norm_eps": 1e-5,
        "qk_norm": True,
        "position_embedding": "rope2d",
        "rope_theta": 50.0,
        "num_register_tokens": 2,
        "layer_scale_init_value": 0.5,
        "pooling": "class_mean",
    },
    "without biases": {
        **dict.fromkeys(("query_bias", "key_bias", "value_bias", "output_bias", "mlp_bias", "patch_bias"), False),
        "hidden_act": "quick_gelu",
        "position_embedding": "sincos2d",
        "use_class_token": False,
        "pooling": "mean",
        "pooling_coverage": "all",
        "norm_position": "after_pooling",
        "pooler_act": "tanh",
        "pooler_size": 8,
    },
    "distilled, of oblong patches": {
        "use_distillation_token": True,
        "use_distillation_classifier": False,
        "use_mask_token": True,
        "num_register_tokens": 1,
        "position_coverage": "all",
        "use_pre_norm": True,
        "num_channels": 1,
        "image_size": (8, 32),
        "patch_size": (2, 8),
        "initializer_range": 0.1,
    },
    "attention pooling": {
        "use_class_token": False,
        "position_embedding": "none",
        "pooling": "attention",
        "pooling_coverage": "patches",
        "norm_position": "none",
    },
    "resampled positions": {
        "position_antialias": True,
        "position_float32": True,
        "position_coverage": "patches",
        "image_size": (8, 16),
    },
    "every kind of dropout": {
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "drop_path_rate": 0.2,
        "patch_drop_rate": 0.25,
        "label_smoothing": 0.1,
        "classification_loss": "binary_cross_entropy",
    },
}
BACKBONES: dict[str, dict[str, Any]] = {
    "maps": {"out_features": ["stem", "stage2"]},
    "tokens": {"apply_layernorm": False, "reshape_hidden_states": False},
}
# Given by the size of the test's model, and always other than the default there.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads")
NOTES = ("converted_from",)  # which the network does not read


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def both(model, pixels, **arguments) -> tuple[dict, dict]:
    """Outputs of the compiled model and of the model itself, from the same random state."""
    outputs = []
    for runner in (torch.compile(model, fullgraph=True, backend="eager"), model):
        torch.manual_seed(3)
        with torch.no_grad():
            outputs.append(runner(pixels, **arguments))
    return outputs[0], outputs[1]


def assert_equal(found, expected) -> None:
    assert list(found.keys()) == list(expected.keys())
    for name in expected:
        ours, theirs = found[name], expected[name]
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("options", CLASSIFIERS)
def test_every_value_of_every_field_compiles_to_one_graph(tiny_model, options):
    fields = CLASSIFIERS[options]
    model = tiny_model(QKViTForImageClassification, num_hidden_layers=2, **fields)
    model.train(fields.get("drop_path_rate", 0) > 0)
    pixels = torch.rand(2, fields.get("num_channels", 3), 16, 16)
    assert_equal(*both(model, pixels, labels=torch.tensor([1, 3]), output_attentions=True, output_qkv=True))


@pytest.mark.parametrize("options", BACKBONES)
def test_every_option_of_the_backbone_compiles_to_one_graph(tiny_model, pixels, options):
    model = tiny_model(QKViTBackbone, num_hidden_layers=2, **BACKBONES[options])
    model(pixels)  # the first call installs transformers' hooks for hidden states, which takes a lock: not compiled
    assert_equal(*both(model, pixels))


def choices(annotation: Any) -> set | None:
    """All values of a switch or a choice; None where they cannot be listed."""
    parts = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    values: set = set()
    for part in parts:
        if part is bool:
            values |= {True, False}
        elif get_origin(part) is Literal:
            values |= set(get_args(part))
        elif part is types.NoneType:
            values.add(None)
        else:
            return None
    return values


def test_no_field_is_left_out_of_these_tests():
    tried = [*CLASSIFIERS.values(), *BACKBONES.values()]
    own = [field for field in dataclasses.fields(QKViTConfig) if field.name in QKViTConfig.__annotations__]
    for field in own:
        if field.name in SIZES + NOTES or field.name.startswith("_"):
            continue
        values = {fields.get(field.name, field.default) for fields in tried}
        wanted = choices(field.type)
        if wanted is None:
            assert field.default in values, field.name
            assert len(values) > 1, f"{field.name} has its default in every one of these models; add another value"
        else:
            assert values == wanted, f"{field.name} has to be tried as {wanted - values}"
