"""transformers' `deit`: one classifier or two, pooler, masked images."""

import pytest
from harness import CHECKS, MLP, SIZE, Case
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    DeiTForMaskedImageModeling,
    DeiTModel,
)

from qkvit.modeling.conversion import convert, export


def model(model_class=DeiTModel, **options):
    return model_class(DeiTConfig(**{**SIZE, **MLP, **options}))


CASES = [
    Case("deit", "pooler", model),
    Case("deit", "one classifier", lambda: model(DeiTForImageClassification, num_labels=3)),
    Case("deit", "two classifiers", lambda: model(DeiTForImageClassificationWithTeacher, num_labels=3, qkv_bias=False)),
    Case(
        "deit",
        "decoder",
        lambda: model(DeiTForMaskedImageModeling, encoder_stride=4),
        sizes=((16, 16),),
        masked=True,
    ),
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_deit(case, check, tmp_path):
    CHECKS[check](case, tmp_path)


def test_without_a_teacher_the_distillation_token_has_no_classifier():
    assert convert(CASES[1].model()).distillation_classifier is None
    assert convert(CASES[2].model()).distillation_classifier is not None


@pytest.mark.parametrize("case", CASES[1:3], ids=str)
def test_transformers_loads_what_is_exported(case, tmp_path):
    theirs = case.model()
    export(convert(theirs), tmp_path / "out")
    _, report = type(theirs).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report.values())
