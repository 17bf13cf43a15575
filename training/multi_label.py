"""How well several labels an image are told: mean average precision, micro F1, exact matches.

Shapes: N images, K labels.
"""

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F


def average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """The area under precision over recall, sum_n (R_n - R_(n-1)) P_n, with equal scores as one threshold.

    Args:
        scores: (N,)
        targets: (N,) 0 or 1, at least one of them 1.

    Example:

    ```python
    >>> round(average_precision(np.array([0.9, 0.8, 0.7]), np.array([1, 0, 1])), 4)  # (1 + 2/3) / 2
    0.8333

    ```
    """
    order = np.argsort(-scores, kind="stable")
    scores, targets = scores[order], targets[order]
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # of each run of equal scores
    found = np.cumsum(targets)[last]
    precision, recall = found / (last + 1), found / found[-1]
    return float(np.sum(np.diff(recall, prepend=0) * precision))


def multi_label_metrics(logits: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The metrics of logits (N, K) and targets (N, K) of 0 and 1.

    Returns:
        loss: mean binary cross-entropy. mean_average_precision: over the labels that occur (left out where none
        does). micro_f1: 2 TP / (2 TP + FP + FN) over all images and labels, where a probability above 1/2 is a
        prediction; 1 where there is neither a label nor a prediction. exact_match: share of images with all K right.

    Example:

    ```python
    >>> measured = multi_label_metrics(np.array([[2.0, -2.0], [2.0, 2.0]]), np.array([[1, 0], [0, 1]]))
    >>> measured["mean_average_precision"], measured["micro_f1"], measured["exact_match"]
    (0.75, 0.8, 0.5)

    ```
    """
    said = logits > 0
    hits = float((said & (targets > 0)).sum())
    total = float(said.sum() + targets.sum())
    loss = F.binary_cross_entropy_with_logits(torch.from_numpy(logits).double(), torch.from_numpy(targets).double())
    measured = {
        "loss": loss.item(),
        "micro_f1": 2 * hits / total if total else 1.0,
        "exact_match": float((said == (targets > 0)).all(1).mean()),
    }
    occurring = np.flatnonzero(targets.sum(0))
    if len(occurring):
        precisions = [average_precision(logits[:, label], targets[:, label]) for label in occurring]
        measured["mean_average_precision"] = float(np.mean(precisions))
    return measured


class MultiLabelScores:
    """Logits and targets of a split, collected over batches and processes."""

    def __init__(self) -> None:
        self._logits: list[np.ndarray] = []
        self._targets: list[np.ndarray] = []

    def add(self, logits: torch.Tensor, targets: torch.Tensor) -> None:
        """A batch: (B, K) both."""
        self._logits.append(logits.float().cpu().numpy())
        self._targets.append(targets.cpu().numpy().astype(np.uint8))

    def measured(self, world: int = 1) -> dict[str, Any]:
        """`multi_label_metrics` of all processes together, and `images`; every process has to ask."""
        parts: list[Any] = [(self._logits, self._targets)]
        if world > 1:
            parts = [None] * world
            torch.distributed.all_gather_object(parts, (self._logits, self._targets))
        logits = [each for part, _ in parts for each in part]
        if not logits:
            return {"images": 0}
        together = np.concatenate(logits)
        targets = np.concatenate([each for _, part in parts for each in part])
        return {**multi_label_metrics(together, targets), "images": len(together)}
