"""Labels of images that may have several: which classes each image has."""

from collections.abc import Iterable
from typing import Any, overload

import numpy as np


class LabelSets:
    """The classes of each image, packed; behaves like an array of rows of 0 and 1.

    `sets[i]` is the multi-hot row of an image, (classes,) float32. `sets[indices]` are the sets of these images.

    Args:
        sets: For each image the indices of its classes, perhaps none; `None` where they are not known.
        classes: How many classes there are.

    Raises:
        ValueError: an index is not one of a class.

    Example:

    ```python
    >>> sets = LabelSets([(0, 2), (), None], classes=3)
    >>> sets[0], len(sets), sets.known.tolist(), sets.counts().tolist()
    (array([1., 0., 1.], dtype=float32), 3, [True, True, False], [1, 0, 1])

    ```
    """

    def __init__(self, sets: Iterable[Iterable[int] | None], classes: int) -> None:
        values: list[int] = []
        ends: list[int] = []
        known: list[bool] = []
        for each in sets:
            known.append(each is not None)
            values.extend(each or ())
            ends.append(len(values))
        self.classes = classes
        self.known = np.asarray(known, dtype=bool)
        self._values = np.asarray(values, dtype=np.int32)
        self._ends = np.asarray([0, *ends], dtype=np.int64)
        outside = self._values[(self._values < 0) | (self._values >= classes)]
        if outside.size:
            raise ValueError(
                f"label {int(outside[0])} is outside the {classes} classes of the data; correct it, or name the classes"
            )

    def __len__(self) -> int:
        return len(self.known)

    def of(self, index: int) -> tuple[int, ...]:
        """The classes of one image."""
        return tuple(self._values[self._ends[index] : self._ends[index + 1]].tolist())

    @overload
    def __getitem__(self, index: int | np.integer[Any]) -> np.ndarray[Any, Any]: ...

    @overload
    def __getitem__(self, index: np.ndarray[Any, Any]) -> "LabelSets": ...

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, np.ndarray):
            return self._some(index)
        row = np.zeros(self.classes, dtype=np.float32)
        row[self._values[self._ends[index] : self._ends[index + 1]]] = 1
        return row

    def _some(self, indices: np.ndarray[Any, Any]) -> "LabelSets":
        return LabelSets((self.of(i) if self.known[i] else None for i in indices.tolist()), self.classes)

    def counts(self) -> np.ndarray[Any, Any]:
        """How many images each class has, (classes,)."""
        return np.bincount(self._values, minlength=self.classes)

    def tobytes(self) -> bytes:
        """The same bytes for the same labels in the same order."""
        return self._values.tobytes() + self._ends.tobytes() + self.known.tobytes()
