"""Images in Parquet files or in a data set of the Hub, read through `datasets`.

Where memory is concerned: `datasets` maps its Arrow files into memory, so that only the rows that are read are there.
For Parquet files it writes such a copy into its cache at the first opening; `streaming=True` reads them as they are.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .decoding import BadImage, BadImageError
from .image_source import Encoded, ImageSource, Sample

IMAGE_COLUMNS = ("image", "img", "pixel_values")
LABEL_COLUMNS = ("label", "labels", "fine_label", "class")
SPLIT_ALIASES = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}


class TableSource(ImageSource):
    """Rows of a `datasets.Dataset`.

    Args:
        table: The data set.
        row_names: What the rows are called: pairs of a name and how many rows it has, in order.
        label: The column of the labels. `None`: the one with a usual name, or the only one of class labels.
    """

    def __init__(
        self, table: Any, *, name: str, row_names: list[tuple[str, int]], label: str | None, **options: Any
    ) -> None:
        if not len(table):
            raise ValueError(f"{name} holds no images: it has no rows; pass another file or split")
        columns = find_columns(table.features, name, label)
        if columns.label is not None and columns.classes is None:
            columns = columns.with_classes(table.unique(columns.label))
        super().__init__(name, class_names=columns.class_names, **options)
        self._columns = columns
        self._table = undecoded(table, columns).select_columns(columns.wanted)
        self._row_names = [row_name for row_name, _ in row_names]
        self._row_ends = np.cumsum([rows for _, rows in row_names])

    def __len__(self) -> int:
        return len(self._table)

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        if self._columns.label is None:
            return np.full(len(self), -1, dtype=np.int64)
        known = (self._columns.label_of(value) for value in self._table.with_format(None)[self._columns.label])
        return np.fromiter((-1 if label is None else label for label in known), dtype=np.int64, count=len(self))

    def encoded(self, index: int) -> Encoded:
        file = int(np.searchsorted(self._row_ends, index, side="right"))
        row = index - (int(self._row_ends[file - 1]) if file else 0)
        return self._columns.encoded(self._table[index], f"{self._row_names[file]}[{row}]")


class StreamingSource(ImageSource):
    """Rows of a `datasets.IterableDataset`, in their order: no index, and a length only where it is published."""

    def __init__(self, table: Any, *, name: str, label: str | None, **options: Any) -> None:
        features = table.features if table.features is not None else table._resolve_features().features
        columns = find_columns(features, name, label)
        if columns.label is not None and columns.classes is None:
            raise ValueError(
                f"the labels in column {columns.label!r} of {name} have no published names, and a stream cannot be read"
                " twice to find them; pass streaming=False"
            )
        super().__init__(name, class_names=columns.class_names, **options)
        self._columns = columns
        self._table = undecoded(table, columns)

    def __len__(self) -> int:
        raise TypeError(f"{self.name} is read as a stream, and its length is not known; pass streaming=False")

    @property
    def labels(self) -> np.ndarray[Any, Any]:
        raise TypeError(f"{self.name} is read as a stream, and its labels come with the images; pass streaming=False")

    def encoded(self, index: int) -> Encoded:
        raise TypeError(f"{self.name} is read as a stream and has no index; iterate over it, or pass streaming=False")

    def all_encoded(self) -> Iterator[Encoded]:
        """The images as they are stored, in their order."""
        for index, row in enumerate(self._table):
            yield self._columns.encoded(row, f"{self.name}[{index}]")

    def __iter__(self) -> Iterator[Sample]:
        for index, stored in enumerate(self.all_encoded()):
            try:
                yield self.decode(stored, index)
            except BadImageError as error:
                self.leave_out(BadImage(index, stored.name, str(error)))

    def describe(self) -> dict[str, Any]:
        classes = None if self.class_names is None else list(self.class_names)
        return {"source": self.name, "split": self.split, "images": "streamed", "classes": classes}

    def __repr__(self) -> str:
        return f"<StreamingSource {self.name}{f' ({self.split})' if self.split else ''}>"


class Columns:
    """Where the image and the label of a row are, and what the labels are called."""

    def __init__(self, image: str, label: str | None, classes: list[Any] | None, *, by_value: bool) -> None:
        self.image = image
        self.label = label
        self.classes = classes
        self._index = {value: index for index, value in enumerate(classes or ())} if by_value else None

    def with_classes(self, values: list[Any]) -> "Columns":
        """Labels without published names: their values in order."""
        known = [value for value in values if value is not None]
        return Columns(self.image, self.label, sorted(known), by_value=True)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        return None if self.classes is None else tuple(str(value) for value in self.classes)

    @property
    def wanted(self) -> list[str]:
        return [self.image] if self.label is None else [self.image, self.label]

    def label_of(self, value: Any) -> int | None:
        if value is None:
            return None
        if self._index is not None:
            return self._index[value]
        return int(value) if value >= 0 else None  # the Hub's test sets without labels hold -1

    def encoded(self, row: dict[str, Any], name: str) -> Encoded:
        stored = row[self.image]
        if isinstance(stored, dict):
            path = stored.get("path")
            stored = stored.get("bytes") or (Path(path) if path else None)
        return Encoded(stored, None if self.label is None else self.label_of(row[self.label]), name)


def find_columns(features: Any, name: str, label: str | None) -> Columns:
    """The columns of a data set's image and label; `ValueError` where they cannot be told."""
    from datasets import ClassLabel, Image

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
    classes = features[label].names if label is not None and isinstance(features[label], ClassLabel) else None
    return Columns(images[0], label, classes, by_value=False)


def undecoded(table: Any, columns: Columns) -> Any:
    """The data set with its images as bytes: `datasets` would decode them in its own way."""
    from datasets import Image

    features = table.features
    if features is not None and not isinstance(features[columns.image], Image):
        return table
    return table.cast_column(columns.image, Image(decode=False))


def open_parquet(
    path: Path, *, name: str, split: str | None, label: str | None, streaming: bool, **options: Any
) -> ImageSource:
    """Open a Parquet file, or a folder of them with one or more splits."""
    files = [path] if path.is_file() else sorted(path.rglob("*.parquet"))
    splits: dict[str, list[Path]] = {}
    for file in files:
        splits.setdefault(split_of(file), []).append(file)
    wanted = None if split is None else SPLIT_ALIASES.get(split, split)
    if wanted is None and len(splits) > 1:
        raise ValueError(f"{name} has the splits {', '.join(splits)}; pass one of them as split")
    if wanted is not None and wanted not in splits:
        raise ValueError(f"{name} has no split {split!r}; it has {', '.join(splits)}")
    chosen, files = next(item for item in splits.items() if wanted in (None, item[0]))
    rows = [(file.name, _rows_of(file)) for file in files]
    if not sum(count for _, count in rows):
        raise ValueError(f"{name} holds no images: it has no rows; pass another file or split")
    table = _load(
        "parquet", name, data_files={"rows": [str(file) for file in files]}, split="rows", streaming=streaming
    )
    options |= {"name": name, "split": chosen, "label": label}
    return StreamingSource(table, **options) if streaming else TableSource(table, row_names=rows, **options)


def split_of(file: Path) -> str:
    """The split that a Parquet file belongs to: its name without the number.

    Example:

    ```python
    >>> split_of(Path("test-00000-of-00002.parquet")), split_of(Path("val.parquet"))
    ('test', 'validation')

    ```
    """
    stem = re.sub(r"-\d+-of-\d+(-[0-9a-f]+)?$", "", file.stem)
    return SPLIT_ALIASES.get(stem, stem)


def _rows_of(file: Path) -> int:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return int(read_metadata(file).num_rows)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as a Parquet file: write it again, or leave it out") from error


def open_hub_dataset(
    name: str, *, split: str | None, label: str | None, streaming: bool, **options: Any
) -> ImageSource:
    """Open a data set of the Hub by its id."""
    tables = _load(name, name, split=split, streaming=streaming)
    if split is None:
        if len(tables) > 1:
            raise ValueError(f"{name} has the splits {', '.join(tables)}; pass one of them as split")
        split, tables = next(iter(tables.items()))
    options |= {"name": name, "split": split, "label": label}
    if streaming:
        return StreamingSource(tables, **options)
    return TableSource(tables, row_names=[(f"{name}/{split}", len(tables))], **options)


def _load(what: str, name: str, **arguments: Any) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name} is read with the package datasets; run: pip install datasets") from error

    try:
        with _bars(datasets, shown=what != "parquet"):
            return datasets.load_dataset(what, **arguments)
    except Exception as error:  # datasets raises errors of a dozen libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} cannot be opened as a data set: {reason.rstrip('.')}") from error


@contextmanager
def _bars(datasets: Any, *, shown: bool) -> Iterator[None]:
    before = datasets.is_progress_bar_enabled()
    if not shown:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if before:
            datasets.enable_progress_bars()
