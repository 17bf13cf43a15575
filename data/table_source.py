"""Images in Parquet and Arrow files or in a data set of the Hub, read through `datasets`.

Where memory is concerned: `datasets` maps its Arrow files into memory, so that only the rows that are read are there.
For Parquet files it writes such a copy into its cache at the first opening; `streaming=True` reads them as they are
(`parquet_source.py`).
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration.hub_errors import hub_sentences
from ..configuration.reasons import first_line
from .columns import Columns, find_columns
from .decoding import BadImage, BadImageError, SourceUnreachableError
from .image_source import Encoded, ImageSource, Sample
from .parquet_source import open_rows
from .splits import choose_split, files_ending, files_of_split


class TableSource(ImageSource):
    """Rows of a `datasets.Dataset`.

    Args:
        table: The data set.
        row_names: What the rows are called: pairs of a name and how many rows it has, in order.
        label: The column of the labels. `None`: the one with a usual name, or the only one of class labels.
        multi_label: The labels may be lists.
    """

    def __init__(
        self,
        table: Any,
        *,
        name: str,
        row_names: list[tuple[str, int]],
        label: str | None,
        multi_label: bool = False,
        **options: Any,
    ) -> None:
        if not len(table):
            raise ValueError(f"{name} holds no images: it has no rows; pass another file or split")
        columns = find_columns(table.features, name, label, multi_label=multi_label)
        if columns.label is not None and columns.classes is None:
            columns = columns.with_classes(_label_cells(table, columns), name)
        super().__init__(name, class_names=columns.class_names, multi_label=columns.multi_label, **options)
        self._columns = columns
        self._table = undecoded(table, columns).select_columns(columns.wanted)
        self._row_names = [row_name for row_name, _ in row_names]
        self._row_ends = np.cumsum([rows for _, rows in row_names])
        self._labels: Any = None

    def __len__(self) -> int:
        return len(self._table)

    @property
    def labels(self) -> Any:
        if self._labels is None:  # read once: they are asked for again and again
            label = self._columns.label
            if label is None:
                self._labels = np.full(len(self), -1, dtype=np.int64)
            else:
                self._labels = self._columns.labels_of(self._table.with_format(None)[label], len(self))
        return self._labels

    def name_of(self, index: int) -> str:
        file = int(np.searchsorted(self._row_ends, index, side="right"))
        row = index - (int(self._row_ends[file - 1]) if file else 0)
        return f"{self._row_names[file]}[{row}]"

    def stored_sizes(self) -> np.ndarray[Any, Any] | None:
        from pyarrow import compute, types

        # Arrow keeps where each cell begins beside the cells: these alone are read from the mapped file.
        column = self._table.data.column(self._columns.image)
        if types.is_struct(column.type):
            column = compute.struct_field(column, "bytes")
        if not (types.is_binary(column.type) or types.is_large_binary(column.type)):
            return None
        sizes = compute.fill_null(compute.binary_length(column), -1).to_numpy().astype(np.int64)
        chosen = self._table._indices  # of a table of which some rows were taken
        return sizes if chosen is None else sizes[chosen.column(0).to_numpy()]

    def encoded(self, index: int) -> Encoded:
        return self._columns.encoded(self._table[index], self.name_of(index))


class StreamingSource(ImageSource):
    """Rows of a `datasets.IterableDataset`, in their order: no index, and a length only where it is published."""

    def __init__(self, table: Any, *, name: str, label: str | None, multi_label: bool = False, **options: Any) -> None:
        features = table.features if table.features is not None else table._resolve_features().features
        columns = find_columns(features, name, label, multi_label=multi_label)
        if columns.label is not None and columns.classes is None:
            raise ValueError(
                f"the labels in column {columns.label!r} of {name} have no published names, and a stream cannot be read"
                " twice to find them; pass streaming=False"
            )
        super().__init__(name, class_names=columns.class_names, multi_label=columns.multi_label, **options)
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
        """The images as they are stored, in their order.

        Raises:
            SourceUnreachableError: the stream breaks off. Nothing behind that place can be had.
        """
        rows = iter(self._table)
        for index in count():
            name = f"{self.name}[{index}]"
            try:
                row = next(rows)
            except StopIteration:
                return
            except Exception as error:  # of datasets, pyarrow, and each file system
                raise SourceUnreachableError.at(name, error) from error
            yield self._columns.encoded(row, name)

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


def _label_cells(table: Any, columns: Columns) -> Any:
    """The column of the labels; of single labels, each once."""
    return table.with_format(None)[columns.label] if columns.multi_label else table.unique(columns.label)


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
    found = [path] if path.is_file() else files_ending(path, ".parquet")
    files = [str(file) for file in found]
    if streaming:
        return open_rows(files, name=name, split=split, label=label, **options)
    chosen, files = files_of_split(files, split, name)
    rows = [(Path(file).name, _rows_of(Path(file))) for file in files]
    if not sum(count for _, count in rows):
        raise ValueError(f"{name} holds no images: it has no rows; pass another file or split")
    table = _load("parquet", name, data_files={"rows": files}, split="rows")
    return TableSource(table, name=name, row_names=rows, split=chosen, label=label, **options)


def _rows_of(file: Path) -> int:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return int(read_metadata(file).num_rows)
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file.name} cannot be read as a Parquet file: write it again, or leave it out") from error


def is_saved_dataset(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote this folder."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _mapped(file: Path) -> Any:
    return _sentence(file.name, lambda datasets: datasets.Dataset.from_file(str(file)))


def saved_splits(path: Path) -> list[str | None]:
    """The splits of what `datasets.save_to_disk` wrote; [None] of a single data set."""
    if not (path / "dataset_dict.json").is_file():
        return [None]
    return list(json.loads((path / "dataset_dict.json").read_text(encoding="utf-8"))["splits"])


def hub_splits(name: str) -> list[str]:
    """The splits of a data set of the Hub."""
    return list(_sentence(name, lambda datasets: datasets.get_dataset_split_names(name)))


def open_arrow(path: Path, *, name: str, split: str | None, label: str | None, **options: Any) -> ImageSource:
    """Open what `datasets.save_to_disk` wrote, an Arrow file, or a folder of them; they are mapped into memory."""
    import_datasets(name)
    options |= {"name": name, "label": label}
    if is_saved_dataset(path):
        saved = _sentence(name, lambda datasets: datasets.load_from_disk(str(path)))
        splits = saved if isinstance(saved, dict) else {str(saved.split or split or "all"): saved}
        chosen, table = choose_split(splits, split, name)
        where = path.name if table is saved else f"{path.name}/{chosen}"
        return TableSource(table, row_names=[(where, len(table))], split=chosen, **options)
    found = [path] if path.is_file() else files_ending(path, ".arrow")
    chosen, files = files_of_split([str(file) for file in found], split, name)
    tables = [_mapped(Path(file)) for file in files]
    table = _sentence(name, lambda datasets: datasets.concatenate_datasets(tables))
    rows = [(Path(file).name, len(part)) for file, part in zip(files, tables, strict=True)]
    return TableSource(table, row_names=rows, split=chosen, **options)


def open_hub_dataset(
    *, name: str, split: str | None, label: str | None, streaming: bool, **options: Any
) -> ImageSource:
    """Open a data set of the Hub by its id."""
    tables = _load(name, name, split=split, streaming=streaming)
    if split is None:
        split, tables = choose_split(tables, None, name)
    options |= {"name": name, "split": split, "label": label}
    if streaming:
        return StreamingSource(tables, **options)
    return TableSource(tables, row_names=[(f"{name}/{split}", len(tables))], **options)


def import_datasets(name: str) -> Any:
    """The package `datasets`, or a sentence that says how to get it."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{name} is read with the package datasets; run: pip install datasets") from error
    return datasets


def _load(what: str, name: str, **arguments: Any) -> Any:
    def load(datasets: Any) -> Any:
        with _bars(datasets, shown=what != "parquet"):
            return datasets.load_dataset(what, **arguments)

    return _sentence(name, load)


def _sentence(name: str, load: Callable[[Any], Any]) -> Any:
    """What `load` gives for the package `datasets`; its errors as one sentence."""
    datasets = import_datasets(name)
    with hub_sentences(name):
        try:
            return load(datasets)
        except Exception as error:  # datasets raises errors of a dozen libraries
            raise ValueError(f"{name} cannot be opened as a data set: {first_line(error)}") from error


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
