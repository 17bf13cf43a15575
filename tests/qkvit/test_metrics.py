"""The metric scripts, through `evaluate` and without the network, against scikit-learn and by hand."""

import importlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from qkvit import metrics

PAIRS = st.integers(1, 40).flatmap(
    lambda count: st.tuples(*[arrays.arrays(np.int64, count, elements=st.integers(0, 6)) for _ in range(2)])
)


@pytest.fixture(scope="module", params=metrics.NAMES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def load():
    """The metric of a name, computed without `evaluate`'s own storage, for examples in numbers."""

    def make(name):
        module = importlib.import_module(f"qkvit.metrics.{name}")
        (metric,) = (thing for thing in vars(module).values() if getattr(thing, "__module__", "") == module.__name__)
        return metric(keep_in_memory=True)

    return make


def probabilities(rng, count, classes):
    drawn = rng.dirichlet(np.full(classes, 0.3), size=count)
    return drawn, rng.integers(0, classes, count)


def test_every_script_loads_by_its_path_without_the_network(name):
    import evaluate

    assert type(evaluate.load(metrics.path(name))).__module__.startswith("evaluate_modules.")
    assert (Path(metrics.__file__).parent / f"{name}.py").is_file()


def test_every_script_imports_one_module_a_line(name):
    """`evaluate` reads the lines itself, and misreads `import datasets, evaluate`."""
    lines = Path(metrics.path(name)).read_text().splitlines()
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert imports == ["import datasets", "import evaluate", "import numpy as np"]


def test_an_unknown_metric_is_refused(raises_sentence):
    with raises_sentence(ValueError, "'acuracy'"):
        metrics.path("acuracy")


@given(PAIRS)
@settings(max_examples=15)
def test_accuracy_macro_f1_and_confusion_are_those_of_scikit_learn(load, pair):
    from sklearn.metrics import accuracy_score, confusion_matrix, f1_score

    found, right = pair
    assert load("accuracy").compute(predictions=found, references=right)["accuracy"] == pytest.approx(
        accuracy_score(right, found)
    )
    assert load("macro_f1").compute(predictions=found, references=right)["macro_f1"] == pytest.approx(
        f1_score(right, found, average="macro")
    )
    counts = load("confusion_matrix").compute(predictions=found, references=right, classes=7)["confusion_matrix"]
    assert np.array_equal(counts, confusion_matrix(right, found, labels=range(7)))


@pytest.mark.parametrize("k", [1, 3, 5, 8])
def test_top_k_accuracy_is_that_of_scikit_learn(k):
    from sklearn.metrics import top_k_accuracy_score

    scores, right = probabilities(np.random.default_rng(0), 60, 8)
    found = metrics.compute("top_k_accuracy", scores, right, k=k)
    expected = 1.0 if k == 8 else top_k_accuracy_score(right, scores, k=k, labels=range(8))
    assert found == {f"top_{k}_accuracy": pytest.approx(expected)}


def test_equal_probabilities_are_no_hit_for_every_class():
    found = metrics.compute("top_k_accuracy", np.full((10, 10), 0.1), np.arange(10), k=5)
    assert found["top_5_accuracy"] == 0.5


def test_top_k_of_too_few_classes_is_refused(raises_sentence):
    with raises_sentence(ValueError, "k=5", "3 classes"):
        metrics.compute("top_k_accuracy", np.full((2, 3), 1 / 3), [0, 1], k=5)


@pytest.mark.parametrize(("found", "right", "wrong"), [([3, 0], [0, 1], 3), ([0, 1], [0, -1], -1), ([0, 0], [0, 3], 3)])
def test_an_index_of_no_class_is_refused(found, right, wrong, raises_sentence):
    with raises_sentence(ValueError, f"hold {wrong},", "3 classes"):
        metrics.compute("confusion_matrix", found, right, classes=3)
    if wrong in right:
        for name, options in (("top_k_accuracy", {"k": 1}), ("expected_calibration_error", {})):
            with raises_sentence(ValueError, f"the references hold {wrong},", "3 classes"):
                metrics.compute(name, np.eye(3)[found], right, **options)


def test_the_calibration_error_by_hand():
    # Two predictions of 0.8, one right: |0.5 - 0.8| for half of the images; two of 0.6, both right: |1 - 0.6|.
    scores = np.array([[0.8, 0.2], [0.2, 0.8], [0.6, 0.4], [0.4, 0.6]])
    found = metrics.compute("expected_calibration_error", scores, [0, 0, 0, 1], bins=15)
    assert found["expected_calibration_error"] == pytest.approx((0.3 + 0.4) / 2)


def test_the_calibration_error_compares_within_bins_of_equal_width():
    rng = np.random.default_rng(1)
    scores, right = probabilities(rng, 500, 4)
    confidence, hit = scores.max(1), scores.argmax(1) == right
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(hit[inside].mean() - confidence[inside].mean())
    found = metrics.compute("expected_calibration_error", scores, right)
    assert found["expected_calibration_error"] == pytest.approx(expected)


def test_certain_and_right_is_calibrated_and_logits_are_refused(raises_sentence):
    found = metrics.compute("expected_calibration_error", np.eye(3), [0, 1, 2])
    assert found["expected_calibration_error"] == 0
    with raises_sentence(ValueError, "softmax"):
        metrics.compute("expected_calibration_error", np.array([[2.0, -1.0]]), [0])
