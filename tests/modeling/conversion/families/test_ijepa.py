"""transformers' `ijepa`: no class token, the mean of the patches for the classifier."""

import pytest
from harness import CHECKS, MLP, SIZE, Case
from transformers import IJepaConfig, IJepaForImageClassification, IJepaModel

from qkvit.modeling.conversion import convert


def model(model_class=IJepaModel, **options):
    arguments = options.pop("arguments", {})
    return model_class(IJepaConfig(**{**SIZE, **MLP, **options}), **arguments)


CASES = [
    Case("ijepa", "model", model),
    Case("ijepa", "mask token", lambda: model(arguments={"use_mask_token": True}), masked=True),
    Case("ijepa", "classifier, no biases of Q, K, V", lambda: model(IJepaForImageClassification, qkv_bias=False)),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_ijepa(case, check, tmp_path):
    CHECKS[check](case, tmp_path)


def test_a_pooler_of_the_first_patch_is_left_out_and_named(caplog):
    convert(model(arguments={"add_pooling_layer": True}))
    assert "pooler.dense.weight" in caplog.text
