"""Expected calibration error, for `evaluate.load`."""

import datasets
import evaluate
import numpy as np


class ExpectedCalibrationError(evaluate.Metric):
    """How far confidence is from accuracy, ECE = sum over bins of |bin| / N * |accuracy(bin) - confidence(bin)|.

    The confidence of a prediction is its probability; bins of equal width divide (0, 1] (Guo et al. 2017, arXiv
    1706.04599, with 15 of them).
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description="The mean distance of accuracy and confidence over bins of confidence.",
            citation="Guo et al. 2017, On Calibration of Modern Neural Networks, arXiv 1706.04599",
            inputs_description="predictions: probabilities (N, classes); references: indices (N,); bins: 15.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float64")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions: list, references: list, bins: int = 15) -> dict[str, float]:
        probabilities, right = np.asarray(predictions), np.asarray(references)
        if not np.allclose(probabilities.sum(axis=1), 1, atol=1e-3) or probabilities.min() < 0:
            raise ValueError("the predictions are no probabilities: they do not sum to 1; pass the softmax of logits")
        outside = right[(right < 0) | (right >= probabilities.shape[1])]
        if len(outside):
            classes = probabilities.shape[1]
            raise ValueError(f"the references hold {outside[0]}, which is no index of {classes} classes; correct it")
        confidence = probabilities.max(axis=1)
        hit = probabilities.argmax(axis=1) == right
        number = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
        gap = np.bincount(number, weights=hit - confidence, minlength=bins)  # |bin| * (accuracy - confidence)
        return {"expected_calibration_error": float(np.abs(gap).sum() / len(right))}
