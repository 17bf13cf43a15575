"""Where the image and the labels of a row are, and what the labels are called; for every kind of table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from .image_source import Encoded, Label
from .label_sets import LabelSets

IMAGE_COLUMNS = ("image", "img", "pixel_values", "jpg", "png", "webp")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class", "cls")


class Columns:
    """The columns of a table's image and label.

    Args:
        image, label: Names of the columns; no label: `None`.
        classes: Names of the classes; `None` where they are not published.
        by_value: The cells hold what `classes` holds, and not its indices.
        multi_label: The cells hold lists.
    """

    def __init__(
        self, image: str, label: str | None, classes: list[Any] | None, *, by_value: bool, multi_label: bool = False
    ) -> None:
        self.image = image
        self.label = label
        self.classes = classes
        self.multi_label = multi_label
        self._index = {value: index for index, value in enumerate(classes or ())} if by_value else None

    def with_classes(self, cells: Iterable[Any], name: str) -> "Columns":
        """Labels without published names: what is found in these cells of the data set `name`, in order.

        Raises:
            ValueError: the lists are multi-hot rows.
        """
        if self.multi_label:
            cells = list(cells)
            refuse_multi_hot(cells, name)
            cells = (value for cell in cells for value in cell or ())
        known = sorted({value for value in cells if not _missing(value)})
        return Columns(self.image, self.label, known, by_value=True, multi_label=self.multi_label)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes in the order of their indices; `None` where there are no labels."""
        return None if self.classes is None else tuple(str(value) for value in self.classes)

    @property
    def wanted(self) -> list[str]:
        """The names of the columns to read."""
        return [self.image] if self.label is None else [self.image, self.label]

    def label_of(self, cell: Any) -> Label:
        """The label of a cell: an index, indices where there may be several, `None` where there is none."""
        if cell is None:
            return None
        if not self.multi_label:
            return self._one(cell)
        indices = dict.fromkeys(self._one(value) for value in cell)  # each once: of objects, one may be there twice
        return tuple(index for index in indices if index is not None)

    def _one(self, value: Any) -> int | None:
        if _missing(value):
            return None
        if self._index is not None:
            return self._index[value]
        return int(value) if value >= 0 else None  # the Hub's test sets without labels hold -1

    def labels_of(self, cells: Iterable[Any], count: int) -> Any:
        """The labels of a whole column: (images,) int64 with -1 where there is none, or `LabelSets`.

        Raises:
            ValueError: one of them is none of the classes.
        """
        if self.multi_label:
            return LabelSets((self.label_of(cell) for cell in cells), len(self.classes or ()))  # type: ignore[misc]
        known = (self.label_of(cell) for cell in cells)
        labels = np.fromiter((-1 if label is None else label for label in known), dtype=np.int64, count=count)
        classes = len(self.classes or ())
        outside = np.flatnonzero(labels >= classes)
        if outside.size:
            raise ValueError(
                f"row {outside[0]} has the label {labels[outside[0]]}, and column {self.label!r} has names for"
                f" {classes} classes; correct the label, or name the classes that are missing"
            )
        return labels

    def encoded(self, row: dict[str, Any], name: str) -> Encoded:
        """The image of a row as it is stored (bytes or a path), and its label."""
        stored = row[self.image]
        if isinstance(stored, dict):
            path = stored.get("path")
            stored = stored.get("bytes") or (Path(path) if path else None)
        elif isinstance(stored, str):
            stored = Path(stored) if stored else None
        elif isinstance(stored, list):  # of pixels: no file
            stored = None
        return Encoded(stored, None if self.label is None else self.label_of(row[self.label]), name)


def _missing(value: Any) -> bool:
    """No label: an empty cell, which is NaN in a column of floats (pandas writes an integer column with gaps so)."""
    return value is None or value != value


def find_columns(features: Any, name: str, label: str | None, *, multi_label: bool = False) -> Columns:
    """The columns of a data set's image and label.

    Args:
        features: Of `datasets`.
        label: The column of the labels. `None`: one with a usual name, or the only one of class labels.
        multi_label: A column of lists is welcome.

    Raises:
        ValueError: they cannot be told, or the labels are lists where they should not be.
    """
    from datasets import ClassLabel, Image, Value

    images = [column for column, feature in features.items() if isinstance(feature, Image)]
    images = images if len(images) == 1 else [column for column in IMAGE_COLUMNS if column in features]
    if not images:
        raise ValueError(f"{name} has the columns {', '.join(features)}, and none with images; name it 'image'")
    if label is not None and label not in features:
        raise ValueError(f"{name} has no column {label!r}; it has {', '.join(features)}")
    if label is None:
        named = [column for column, feature in features.items() if isinstance(feature, ClassLabel)]
        usual = [column for column in LABEL_COLUMNS if column in features]
        label = next(iter(usual), named[0] if len(named) == 1 else None)
    kind = None if label is None else features[label]
    inner = _inside_list(kind)
    if inner is not None and not multi_label:
        raise ValueError(several_labels(name, str(label)))
    kind = kind if inner is None else inner
    if kind is not None and not isinstance(kind, ClassLabel | Value):
        raise ValueError(
            f"the labels in column {label!r} of {name} are neither numbers nor text; name another column as label"
        )
    classes = kind.names if isinstance(kind, ClassLabel) else None
    return Columns(images[0], label, classes, by_value=False, multi_label=inner is not None)


def several_labels(name: str, label: str) -> str:
    """What is said where one label an image is wanted."""
    return (
        f"the labels in column {label!r} of {name} are lists, several for an image; name a column with one label, or"
        " train on it with qkvit train (multi-label)"
    )


def refuse_multi_hot(cells: Iterable[Any], name: str) -> None:
    """Refuse lists of zeros and ones, one for each class: as indices they would give every image the classes 0 and 1.

    Rows of two classes cannot be told from lists of indices.

    Raises:
        ValueError: all lists are of one length, three or more, and hold 0 and 1 alone.

    Example:

    ```python
    >>> refuse_multi_hot([[0, 1], [1]], "zoo")
    >>> refuse_multi_hot([[0, 0], [1, 1]], "zoo")
    >>> refuse_multi_hot([[0, 0, 0], [1, 0, 1]], "zoo")
    Traceback (most recent call last):
    ...
    ValueError: the labels of zoo are rows of 3 zeros and ones; write the indices of the ones: [0, 2] for [1, 0, 1]

    ```
    """
    count = 0
    most: list[int] = []  # the row with the most ones
    for row in (list(cell) for cell in cells if cell is not None):
        if len(row) < 3 or (count and len(row) != len(most)) or not set(row) <= {0, 1}:
            return  # most often at the first one
        numbers = [int(value) for value in row]
        most = max(most, numbers, key=sum) if count else numbers
        count += 1
    if count > 1:
        raise ValueError(
            f"the labels of {name} are rows of {len(most)} zeros and ones; write the indices of the ones:"
            f" {[index for index, value in enumerate(most) if value]} for {most}"
        )


def _inside_list(feature: Any) -> Any:
    """The type inside a list; None where it is no list."""
    from datasets import List

    if isinstance(feature, List):
        return feature.feature
    return getattr(feature, "feature", None) if type(feature).__name__ in ("LargeList", "Sequence") else None
