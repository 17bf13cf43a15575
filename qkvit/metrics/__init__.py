"""Metrics of classification as scripts for `evaluate`, which travel with the package: nothing is fetched.

`evaluate.load` copies a script to where it imports it from, so each stands alone. transformers' users can load them by
path too: `evaluate.load(qkvit.metrics.path("macro_f1"))`.
"""

from pathlib import Path
from typing import Any

NAMES = ("accuracy", "top_k_accuracy", "macro_f1", "expected_calibration_error", "confusion_matrix")


def path(name: str) -> str:
    """Where the script of a metric is.

    Example:

    ```python
    >>> import evaluate
    >>> metric = evaluate.load(path("accuracy"))
    >>> metric.compute(predictions=[0, 1, 1, 1], references=[0, 1, 2, 1])
    {'accuracy': 0.75}

    ```
    """
    if name not in NAMES:
        raise ValueError(f"there is no metric {name!r}; pass one of {', '.join(NAMES)}")
    return str(Path(__file__).parent / f"{name}.py")


def compute(name: str, predictions: Any, references: Any, **options: Any) -> dict[str, Any]:
    """The result of a metric of this folder, computed through `evaluate` in memory.

    Args:
        name: One of `NAMES`.
        predictions: Class indices (N,), or probabilities (N, classes), as the metric takes them.
        references: Class indices (N,).
        options: The metric's own.

    Raises:
        ValueError: no metric has that name, or its arguments do not fit.

    Example:

    ```python
    >>> compute("top_k_accuracy", [[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], [1, 0], k=2)
    {'top_2_accuracy': 0.5}

    ```
    """
    import evaluate

    metric = evaluate.load(path(name), keep_in_memory=True)
    return metric.compute(predictions=predictions, references=references, **options)
