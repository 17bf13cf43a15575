"""Macro-averaged F1, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np


class MacroF1(evaluate.Metric):
    """The unweighted mean of each class's F1 = 2 TP / (2 TP + FP + FN), over the classes that occur at all."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The unweighted mean of F1 over the classes that occur among predictions or references.",
            citation="",
            inputs_description="predictions, references: class indices (N,).",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list, references: list) -> dict[str, float]:
        found, right = np.asarray(predictions), np.asarray(references)
        _, both = np.unique(np.concatenate([found, right]), return_inverse=True)
        found, right = np.split(both, 2)
        count = both.max() + 1
        hits = np.bincount(right[found == right], minlength=count)
        occurrences = np.bincount(found, minlength=count) + np.bincount(right, minlength=count)  # 2 TP + FP + FN
        return {"macro_f1": float(np.mean(2 * hits / occurrences))}
