"""transformers' `vit_msn`."""

import pytest
from harness import CHECKS, MLP, SIZE, Case
from transformers import ViTMSNConfig, ViTMSNForImageClassification, ViTMSNModel


def model(model_class=ViTMSNModel, **options):
    return model_class(ViTMSNConfig(**{**SIZE, **MLP, **options}))


CASES = [
    Case("vit_msn", "model", model),
    Case("vit_msn", "classifier, no biases of Q, K, V", lambda: model(ViTMSNForImageClassification, qkv_bias=False)),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_vit_msn(case, check, tmp_path):
    CHECKS[check](case, tmp_path)
