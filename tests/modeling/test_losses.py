"""Losses of classification: each against a plain formula in float64, and labels that no loss can take."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qkvit import QKViTConfig, QKViTForImageClassification
from qkvit.modeling.losses_qkvit import classification_loss

smoothings = st.floats(0, 0.9)
seeds = st.integers(0, 2**31 - 1)


def random_logits(seed: int, batch: int = 6, labels: int = 4) -> torch.Tensor:
    return 3 * torch.randn(batch, labels, generator=torch.Generator().manual_seed(seed))


def random_labels(seed: int) -> torch.Tensor:
    """Class indices (6,), one of them left out."""
    labels = torch.randint(0, 4, (6,), generator=torch.Generator().manual_seed(seed))
    labels[2] = -100
    return labels


def cross_entropy(logits, targets) -> float:
    """-sum_k t_k log softmax(z)_k, mean over the samples."""
    total = 0.0
    for z, t in zip(logits.double(), targets.double(), strict=True):
        total -= sum(t[k] * (z[k] - z.exp().sum().log()) for k in range(len(z)))
    return float(total / len(logits))


def summed_bce(logits, targets) -> float:
    """-sum_k t_k log s(z_k) + (1 - t_k) log(1 - s(z_k)), mean over the samples."""
    p = 1 / (1 + (-logits.double()).exp())
    return float(-(targets * p.log() + (1 - targets) * (1 - p).log()).sum(-1).mean())


def smooth(targets, smoothing: float) -> torch.Tensor:
    return targets.double() * (1 - smoothing) + smoothing / targets.shape[-1]


def one_hot(labels) -> torch.Tensor:
    return torch.eye(4, dtype=torch.float64)[labels]


@pytest.mark.parametrize(("dtype", "of_the_loss"), [(torch.float64, torch.float64), (torch.float16, torch.float32)])
def test_the_loss_is_as_exact_as_the_model_and_float32_at_least(tiny_config, dtype, of_the_loss):
    assert classification_loss(random_logits(0).to(dtype), random_labels(0), tiny_config()).dtype == of_the_loss


@given(seeds, smoothings)
def test_integer_labels_give_cross_entropy_with_label_smoothing_over_the_samples_that_count(
    tiny_config, seed, smoothing
):
    logits, labels = random_logits(seed), random_labels(seed)
    counted = labels >= 0
    expected = cross_entropy(logits[counted], smooth(one_hot(labels[counted]), smoothing))
    found = classification_loss(logits, labels, tiny_config(label_smoothing=smoothing))
    assert found.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(seeds, smoothings)
def test_integer_labels_give_binary_cross_entropy_where_the_configuration_says_so(tiny_config, seed, smoothing):
    logits, labels = random_logits(seed), random_labels(seed)
    counted = labels >= 0
    expected = summed_bce(logits[counted], smooth(one_hot(labels[counted]), smoothing))
    config = tiny_config(label_smoothing=smoothing, classification_loss="binary_cross_entropy")
    assert classification_loss(logits, labels, config).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(seeds, smoothings, st.sampled_from(["cross_entropy", "binary_cross_entropy"]))
def test_float_labels_are_soft_targets(tiny_config, seed, smoothing, kind):
    logits, targets = random_logits(seed), random_logits(seed + 1).softmax(-1)
    expected = {"cross_entropy": cross_entropy, "binary_cross_entropy": summed_bce}[kind](
        logits, smooth(targets, smoothing)
    )
    config = tiny_config(label_smoothing=smoothing, classification_loss=kind)
    assert classification_loss(logits, targets, config).item() == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_one_hot_floats_are_the_same_as_integers(tiny_config, kind):
    logits, labels = random_logits(0), torch.tensor([0, 1, 2, 3, 0, 1])
    config = tiny_config(label_smoothing=0.1, classification_loss=kind)
    torch.testing.assert_close(
        classification_loss(logits, one_hot(labels).float(), config), classification_loss(logits, labels, config)
    )


@given(seeds)
def test_multi_label_is_the_mean_binary_cross_entropy(tiny_config, seed):
    logits = random_logits(seed)
    targets = (random_logits(seed + 1) > 0).long()
    config = tiny_config(problem_type="multi_label_classification")
    for labels in (targets, targets.float(), targets.bool()):
        expected = summed_bce(logits, targets) / 4
        assert classification_loss(logits, labels, config).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("labels", "shape"), [(1, (6,)), (1, (6, 1)), (4, (6, 4))])
def test_regression_is_the_mean_squared_error(tiny_config, labels, shape):
    logits, targets = random_logits(0, labels=labels), torch.randn(shape)
    expected = (logits - targets.reshape(6, labels)).square().mean()
    torch.testing.assert_close(classification_loss(logits, targets, tiny_config(problem_type="regression")), expected)


def test_a_single_label_is_a_regression(tiny_config):
    logits, targets = random_logits(0, labels=1), torch.randn(6)
    expected = (logits[:, 0] - targets).square().mean()
    torch.testing.assert_close(classification_loss(logits, targets, tiny_config(num_labels=1)), expected)


def test_the_loss_of_even_logits_is_the_log_of_the_number_of_labels(tiny_config):
    for labels in (2, 10, 1000):
        loss = classification_loss(torch.zeros(3, labels), torch.tensor([0, 1, 0]), tiny_config())
        assert loss.item() == pytest.approx(math.log(labels), rel=1e-6)


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_a_sample_that_is_left_out_gets_no_gradient(tiny_config, kind):
    logits = random_logits(0).requires_grad_()
    classification_loss(logits, random_labels(0), tiny_config(classification_loss=kind)).backward()
    assert (logits.grad[2] == 0).all()
    assert (logits.grad[[0, 1, 3, 4, 5]].abs().sum(-1) > 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_loss_of_half_precision_logits_is_computed_in_float32(tiny_config, dtype):
    logits, labels = random_logits(0).to(dtype), torch.tensor([0, 1, 2, 3, 0, 1])
    loss = classification_loss(logits, labels, tiny_config())
    assert loss.dtype == torch.float32
    assert torch.equal(loss, classification_loss(logits.float(), labels, tiny_config()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8, torch.int16])
def test_class_labels_may_be_integers_of_any_type_and_stand_in_a_column(tiny_config, dtype):
    logits, labels = random_logits(0), torch.tensor([0, 1, 2, 3, 0, 1])
    expected = classification_loss(logits, labels, tiny_config())
    assert torch.equal(classification_loss(logits, labels.to(dtype), tiny_config()), expected)
    assert torch.equal(classification_loss(logits, labels.to(dtype)[:, None], tiny_config()), expected)


# ---- labels that no loss can take


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("label", [-1, 4, 1000, -101])
def test_a_class_label_out_of_range_is_refused(raises_sentence, tiny_config, label, kind):
    labels = torch.tensor([0, 1, label, 3, 0, 1])
    with raises_sentence(ValueError, f"label {label} ", "[0, 4)", "num_labels"):
        classification_loss(random_logits(0), labels, tiny_config(classification_loss=kind))


@pytest.mark.parametrize(
    "labels", [torch.zeros(5, dtype=torch.long), torch.zeros(6, 4, dtype=torch.long), torch.zeros(6, dtype=torch.bool)]
)
def test_class_labels_of_the_wrong_shape_or_type_are_refused(raises_sentence, tiny_config, labels):
    with raises_sentence(ValueError, str(tuple(labels.shape)), str(labels.dtype), "6 images", "(6, 4)"):
        classification_loss(random_logits(0), labels, tiny_config())


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "regression"])
@pytest.mark.parametrize("shape", [(6,), (6, 3), (4, 6), (24,)])
def test_float_labels_of_the_wrong_shape_are_refused(raises_sentence, tiny_config, shape, problem_type):
    with raises_sentence(ValueError, str(shape), "(6, 4)"):
        classification_loss(random_logits(0), torch.zeros(shape), tiny_config(problem_type=problem_type))


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification"])
@pytest.mark.parametrize("value", [-0.5, 2.0, math.nan, math.inf])
def test_a_target_that_is_no_probability_is_refused(raises_sentence, tiny_config, value, problem_type):
    targets = torch.full((6, 4), 0.25)
    targets[3, 1] = value
    with raises_sentence(ValueError, f"label {value}", "[0, 1]"):
        classification_loss(random_logits(0), targets, tiny_config(problem_type=problem_type))


def test_the_model_gives_the_loss_of_its_logits(tiny_model, pixels):
    labels = torch.tensor([1, 4])
    model = tiny_model(QKViTForImageClassification, label_smoothing=0.2)
    out = model(pixels, labels=labels)
    torch.testing.assert_close(out.loss, torch.nn.functional.cross_entropy(out.logits, labels, label_smoothing=0.2))
    assert model(pixels).loss is None


def test_soft_targets_that_do_not_sum_to_one_name_the_multi_label_problem_type(tiny_config, raises_sentence):
    labels = torch.tensor([[1.0, 1.0, 0.0, 0.0, 0.0]])
    with raises_sentence(ValueError, "2.0", "multi_label_classification"):
        classification_loss(torch.zeros(1, 5), labels, tiny_config(num_labels=5))


@pytest.mark.parametrize("kind", ["cross_entropy", "binary_cross_entropy"])
def test_a_batch_without_a_counted_sample_has_a_loss_of_zero(tiny_config, kind):
    config = tiny_config(num_labels=5, classification_loss=kind)
    assert classification_loss(torch.zeros(2, 5), torch.tensor([-100, -100]), config) == 0


def test_labels_for_a_model_without_labels_are_refused(tiny_config, raises_sentence):
    model = QKViTForImageClassification(tiny_config(num_labels=0))
    with raises_sentence(ValueError, "num_labels=0"):
        model(torch.rand(1, 3, 16, 16), labels=torch.tensor([0]))


def test_a_problem_type_that_is_set_later_and_unknown_is_refused(raises_sentence):
    config = QKViTConfig(num_labels=3)
    with raises_sentence(ValueError, "problem_type='regresion'", "'regression'"):
        config.problem_type = "regresion"  # where transformers knows the field's type, refused here already
        classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]), config)
