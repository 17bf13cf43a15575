"""Parquet files read where they lie, row group by row group: nothing is copied, and memory holds a few groups.

An image is found by its index, so that order, shares of processes and going on after a stop are as for any other
source. Files may also lie behind any file system of `fsspec` (hf://, s3://, ...).
"""

import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import numpy as np

from ..configuration.hub_errors import hub_sentences
from ..configuration.reasons import first_line
from .columns import find_columns
from .decoding import BadImageError, SourceUnreachableError, is_outage
from .image_source import Encoded, ImageSource
from .splits import files_of_split

READERS = 8  # threads that read footers and labels when a source is opened

T = TypeVar("T")


class ParquetSource(ImageSource):
    """Rows of Parquet files, read when they are asked for.

    Neighbours in a row group are read together: ask for images in an order that stays within few groups at a time
    (`group_ends` says where they end), and keep as many groups in memory as it stays within (`kept_groups`).

    Args:
        files: Paths, or addresses that `fsspec` knows.
        name: What was opened.
        label: The column of the labels; `None`: the one with a usual name.
        multi_label: The labels may be lists.

    Attributes:
        group_ends: (groups,) how many rows lie up to the end of each row group.
        kept_groups: How many row groups each process keeps in memory.
    """

    def __init__(
        self, files: list[str], *, name: str, label: str | None, multi_label: bool = False, **options: Any
    ) -> None:
        from datasets import Features

        footers = _at_once(self._footer, files)
        if not any(group.rows for _, groups in footers for group in groups):
            raise ValueError(f"{name} holds no images: it has no rows; pass another file or split")
        schema = footers[0][0]
        for file, (other, _) in zip(files, footers, strict=True):
            if other.names != schema.names:
                raise ValueError(f"{file} has other columns than {files[0]}; give all files of a split the same")
        columns = find_columns(Features.from_arrow_schema(schema), name, label, multi_label=multi_label)
        self.files = files
        self._first_row = np.cumsum([0, *(sum(group.rows for group in groups) for _, groups in footers)])
        self._groups = [(file, group) for file, (_, groups) in enumerate(footers) for group in range(len(groups))]
        self.group_ends = np.cumsum([group.rows for _, groups in footers for group in groups])
        self._group_sizes = [group.bytes.get(columns.image, -1) for _, groups in footers for group in groups]
        self.kept_groups = 2
        self._kept: OrderedDict[int, Any] = OrderedDict()
        self._labels: Any = None
        if columns.label is not None and columns.classes is None:
            cells = self._label_cells(columns.label)
            columns = columns.with_classes(cells, name)
            self._labels = columns.labels_of(cells, len(self))  # now: the column is not read again
        self._columns = columns
        super().__init__(name, class_names=columns.class_names, multi_label=columns.multi_label, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": OrderedDict()}

    def __len__(self) -> int:
        return int(self.group_ends[-1])

    @property
    def labels(self) -> Any:
        """Read once, from the column of the labels alone."""
        if self._labels is None:
            if self._columns.label is None:
                self._labels = np.full(len(self), -1, dtype=np.int64)
            else:
                self._labels = self._columns.labels_of(self._label_cells(self._columns.label), len(self))
        return self._labels

    def name_of(self, index: int) -> str:
        file = int(np.searchsorted(self._first_row, index, side="right")) - 1
        return f"{os.path.basename(self.files[file])}[{index - int(self._first_row[file])}]"

    def stored_sizes(self) -> np.ndarray[Any, Any]:
        """Of the column of the images in each row group, (groups,), before compression."""
        return np.asarray(self._group_sizes, dtype=np.int64)

    def encoded(self, index: int) -> Encoded:
        group = int(np.searchsorted(self.group_ends, index, side="right"))
        first = int(self.group_ends[group - 1]) if group else 0
        try:
            table = self._group(group)
        except Exception as error:  # pyarrow's, and each file system's
            if is_outage(error) or ("://" in self.files[0] and not _is_damage(error)):
                raise SourceUnreachableError.at(self.name_of(index), error) from error
            raise BadImageError(f"{self.name_of(index)}: its row group cannot be read ({first_line(error)})") from error
        return self._columns.encoded(table.slice(index - first, 1).to_pylist()[0], self.name_of(index))

    def _group(self, group: int) -> Any:
        table = self._kept.pop(group, None)
        if table is None:
            while len(self._kept) >= max(self.kept_groups, 1):
                self._kept.popitem(last=False)
            file, inside = self._groups[group]
            with _opened(self.files[file]) as parquet:
                table = parquet.read_row_group(inside, columns=self._columns.wanted, use_threads=False)
        self._kept[group] = table
        return table

    @staticmethod
    def _footer(file: str) -> tuple[Any, list["_Group"]]:
        """A file's schema, and its row groups."""
        name = os.path.basename(file)
        with hub_sentences(file):
            try:
                with _opened(file) as parquet:
                    metadata, groups = parquet.metadata, range(parquet.metadata.num_row_groups)
                    return parquet.schema_arrow, [_Group.of(metadata.row_group(group)) for group in groups]
            except Exception as error:
                raise ValueError(f"{name} cannot be read as a Parquet file: write it again, or leave it out") from error

    def _label_cells(self, column: str) -> list[Any]:
        def cells(file: str) -> list[Any]:
            with hub_sentences(file), _opened(file) as parquet:
                return parquet.read(columns=[column], use_threads=False)[column].to_pylist()

        return [cell for part in _at_once(cells, self.files) for cell in part]


class _Group(NamedTuple):
    """A row group: its rows, and the bytes of each column, before compression."""

    rows: int
    bytes: dict[str, int]

    @classmethod
    def of(cls, metadata: Any) -> "_Group":
        sizes: dict[str, int] = {}
        for number in range(metadata.num_columns):
            part = metadata.column(number)  # a column of structures has one for each of their fields
            name = part.path_in_schema.partition(".")[0]
            sizes[name] = sizes.get(name, 0) + part.total_uncompressed_size
        return cls(metadata.num_rows, sizes)


@contextmanager
def _opened(file: str) -> Iterator[Any]:
    from pyarrow.parquet import ParquetFile

    if "://" not in file:
        with ParquetFile(file, memory_map=True) as parquet:
            yield parquet
        return
    from fsspec.core import url_to_fs

    # Looked up each time: fsspec keeps one file system for each process, and a forked one must not use its parent's.
    system, path = url_to_fs(file)
    with system.open(path, "rb") as opened, ParquetFile(opened, pre_buffer=True) as parquet:
        yield parquet


def _is_damage(error: Exception) -> bool:
    """Whether an error in reading from a network is of the file: it is gone, or pyarrow cannot make sense of it."""
    from pyarrow.lib import ArrowException

    # pyarrow's errors about content are its own, or bare OSErrors; those of file systems are of kinds of their own.
    return isinstance(error, ArrowException | FileNotFoundError) or (type(error) is OSError and error.errno is None)


def _at_once(function: Callable[[str], T], files: list[str]) -> list[T]:
    """The results for all files, in their order; reading waits for disks and networks."""
    if len(files) == 1:
        return [function(files[0])]
    with ThreadPoolExecutor(min(READERS, len(files))) as pool:
        return list(pool.map(function, files))


def open_rows(files: list[str], *, name: str, split: str | None, **options: Any) -> ParquetSource:
    """The rows of one split of these files, read where they lie."""
    chosen, files = files_of_split(files, split, name)
    return ParquetSource(files, name=name, split=chosen, **options)


def _is_parquet(file: str) -> bool:
    return file.lower().endswith(".parquet")


def remote_parquet_files(address: str) -> list[str]:
    """The Parquet files at or below an address of `fsspec`, as addresses.

    Raises:
        ValueError: there are none, or the address cannot be reached.
    """
    from fsspec.core import url_to_fs

    with hub_sentences(address):
        try:
            system, path = url_to_fs(address)
            below = [path] if _is_parquet(path) else sorted(system.glob(f"{path.rstrip('/')}/**/*.*"))
            found = [file for file in below if _is_parquet(file)]
            files = [system.unstrip_protocol(file) for file in found]
        except Exception as error:  # each file system's
            raise ValueError(f"{address} cannot be read: {first_line(error)}") from error
    if not files:
        raise ValueError(f"there are no Parquet files at {address}; pass the address of one, or of a folder of them")
    return files
