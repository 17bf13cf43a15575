"""transformers' `dinov2_with_registers`: any number of registers."""

import pytest
from harness import CHECKS, KEY_BIAS, SIZE, Case
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersForImageClassification, Dinov2WithRegistersModel

SIZE = {**SIZE, "mlp_ratio": 2}


def model(model_class=Dinov2WithRegistersModel, **options):
    return model_class(Dinov2WithRegistersConfig(**{**SIZE, **options}))


CASES = [
    Case(
        "dinov2_with_registers",
        "three",
        lambda: model(num_register_tokens=3),
        sizes=((16, 16), (8, 12), (24, 20)),  # smaller, so that their antialiasing matters
        masked=True,
    ),
    Case(
        "dinov2_with_registers",
        "one, gated MLP",
        lambda: model(num_register_tokens=1, use_swiglu_ffn=True),
        masked=True,
    ),
    Case(
        "dinov2_with_registers",
        "none, classifier",
        lambda: model(Dinov2WithRegistersForImageClassification, num_register_tokens=0, num_labels=3),
        still=(KEY_BIAS, "mask_token", "register_tokens"),
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_dinov2_with_registers(case, check, tmp_path):
    CHECKS[check](case, tmp_path)
