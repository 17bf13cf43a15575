"""Top-k accuracy, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """How often the right class is among the k most probable ones; of equal ones, those with the lower index count."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How often the right class is among the k most probable ones.",
            citation="",
            inputs_description="predictions: probabilities or logits (N, classes); references: indices (N,); k: 5.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list, references: list, k: int = 5) -> dict[str, float]:
        scores, right = np.asarray(predictions), np.asarray(references)
        if not 1 <= k <= scores.shape[1]:
            raise ValueError(f"k={k} is not between 1 and the {scores.shape[1]} classes; pass another k")
        outside = right[(right < 0) | (right >= scores.shape[1])]
        if len(outside):
            classes = scores.shape[1]
            raise ValueError(f"the references hold {outside[0]}, which is no index of {classes} classes; correct it")
        best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return {f"top_{k}_accuracy": float((best == right[:, None]).any(axis=1).mean())}
