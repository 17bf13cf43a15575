"""What a model has to beat: two classic classifiers on the same pixels, scaled to [0, 1], and the same split."""

from typing import Any

import numpy as np

from .images.mnist5k import Digits


def logistic_regression_accuracy(train: Digits, held_out: Digits) -> float:
    """Share of the held-out digits that multinomial logistic regression gets right.

    With an L2 penalty of C = 0.1, which does better on these digits than scikit-learn's default of 1.
    """
    from sklearn.linear_model import LogisticRegression

    return _accuracy(LogisticRegression(C=0.1, max_iter=1000), train, held_out)


def nearest_neighbour_accuracy(train: Digits, held_out: Digits, neighbours: int = 3) -> float:
    """Share of the held-out digits that the vote of their nearest neighbours (Euclidean) gets right."""
    from sklearn.neighbors import KNeighborsClassifier

    return _accuracy(KNeighborsClassifier(n_neighbors=neighbours), train, held_out)


def _accuracy(classifier: Any, train: Digits, held_out: Digits) -> float:
    from threadpoolctl import threadpool_limits

    # Many small products: on a machine with other work, several threads take ten times as long as one.
    with threadpool_limits(1):
        classifier.fit(_pixels(train), train.labels)
        return float(classifier.score(_pixels(held_out), held_out.labels))


def _pixels(digits: Digits) -> np.ndarray:
    return digits.images.reshape(len(digits), -1) / 255.0
