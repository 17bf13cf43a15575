"""Confusion matrix, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np


class ConfusionMatrix(evaluate.Metric):
    """How many images of each class (rows) were taken for each class (columns)."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="How many images of each class (rows) were taken for each class (columns).",
            citation="",
            inputs_description="predictions, references: class indices (N,); classes: how many there are.",
            features=datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}),
        )

    def _compute(self, predictions: list, references: list, classes: int) -> dict[str, list[list[int]]]:
        for name, indices in (("predictions", predictions), ("references", references)):
            outside = [index for index in indices if not 0 <= index < classes]
            if outside:
                raise ValueError(
                    f"the {name} hold {outside[0]}, which is no index of {classes} classes; correct it, or pass more"
                    " classes"
                )
        pairs = np.asarray(references) * classes + np.asarray(predictions)
        counts = np.bincount(pairs, minlength=classes * classes)
        return {"confusion_matrix": counts.reshape(classes, classes).tolist()}
