"""Open images, wherever they are: one function for folders, Parquet files and the Hub."""

import os
from pathlib import Path
from typing import Any

from .decoding import MAX_PIXELS
from .folder_source import EXTENSIONS, FolderSource, split_folders
from .hub_names import HUB_ID, look_for
from .image_source import ImageSource, OnBadImage
from .parquet_source import open_rows, remote_parquet_files
from .shard_source import open_shards, shards_of
from .splits import by_split, files_ending
from .table_source import (
    hub_splits,
    import_datasets,
    is_saved_dataset,
    open_arrow,
    open_hub_dataset,
    open_parquet,
    saved_splits,
)

_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".tar": "shards"}


def open_images(
    source: str | Path,
    split: str | None = None,
    label: str | None = None,
    on_bad_image: OnBadImage = "stop",
    *,
    streaming: bool = False,
    max_pixels: int = MAX_PIXELS,
    multi_label: bool = False,
) -> ImageSource:
    """Open a set of images; nothing is decoded before it is asked for.

    | source | labels |
    |---|---|
    | a folder of class folders, also below a folder for each split | the folders' names, in alphabetical order |
    | a folder of images | none |
    | a Parquet file with the columns `image` and `label`, or a folder of such files | as `datasets` wrote them |
    | an Arrow file, a folder of them, or what `datasets.save_to_disk` wrote | likewise |
    | WebDataset shards: a .tar file, "shards/{000..009}.tar", or a folder of them | in .cls or .json files |
    | the id of a data set on the Hub | as published |
    | an address of `fsspec` such as hf://datasets/ID, with `streaming` | as `datasets` wrote the Parquet files |

    Numbers in WebDataset shards are named by the lines of a file classes.txt beside the shards, if there is one.
    How a picture becomes RGB is said at `decode_image`.

    Args:
        source: One of the table.
        split: Which part, e.g. "test"; needed where there are several. The split of a file is its name without the
            number (test-00000-of-00001.parquet, train-000012.tar), or its folder's where it is nothing but a number.
        label: The column of the labels, for tables; the entry of the .json files, for shards. `None`: "label" or
            the only column of class labels.
        on_bad_image: What iterating and `batches` do about an image that cannot be used: "stop" raises and names it,
            "skip" leaves it out and lists it in `source.bad_images`.
        streaming: Read Parquet files where they lie, a row group at a time, without a copy on the disk; of a Hub id row
            by row: no index, no length. Everything else is read as it is in any case.
        max_pixels: Larger images cannot be used.
        multi_label: Labels that are lists, several for an image, are welcome and not refused.

    Returns:
        An `ImageSource`: `len(source)`, `source[i]` with `image`, `label`, `name` and `index`, `source.class_names`.

    Raises:
        ValueError: there is nothing of that name, no image in it, no such split or column.

    Example:

    ```python
    >>> from PIL import Image
    >>> for name in ("cat", "dog"):
    ...     Path("pets", name).mkdir(parents=True)
    ...     Image.new("RGB", (40, 30)).save(f"pets/{name}/1.png")
    >>> source = open_images("pets")
    >>> source.class_names, len(source)
    (('cat', 'dog'), 2)
    >>> source[1].image.size, source[1].label, source[1].name
    ((40, 30), 1, 'dog/1.png')

    ```
    """
    name = str(source)
    options: dict[str, Any] = {"on_bad_image": on_bad_image, "max_pixels": max_pixels, "split": split, "name": name}
    labelled: dict[str, Any] = {**options, "label": label, "multi_label": multi_label}
    if "://" in name:
        import_datasets(name)
        if not streaming:
            raise ValueError(f"{name} is an address; pass streaming=True (in a recipe: data.streaming: true)")
        return open_rows(remote_parquet_files(name), **labelled)
    path, kind = Path(source), kind_of(name)
    if kind == "shards":
        return open_shards(shards_of(name), **labelled)
    if kind == "arrow":
        return open_arrow(path, **labelled)
    if kind == "parquet":
        return open_parquet(path, streaming=streaming, **labelled)
    if kind == "folder":
        if label is not None:
            raise ValueError(f"{name} is a folder of images and has no column {label!r}; leave label out")
        return FolderSource(path, **options)
    look_for(name, "dataset")
    return open_hub_dataset(streaming=streaming, **labelled)


def kind_of(source: str) -> str:
    """What a name stands for: "shards", "arrow", "parquet", "folder" or "hub"; `ValueError` where for nothing."""
    path = Path(source)
    if path.is_dir():
        if is_saved_dataset(path):
            return "arrow"
        endings: set[str] = set()
        for _, _, files in os.walk(path):
            endings |= {os.path.splitext(file)[1].lower() for file in files}
        tables = [kind for ending, kind in _KINDS.items() if ending in endings and kind != "shards"]
        # Beside images, a .tar file is the archive that they came in.
        return next(iter(tables), "shards" if ".tar" in endings and not endings & EXTENSIONS else "folder")
    kind = _KINDS.get(path.suffix.lower())
    if kind is not None and (path.is_file() or shards_of(source)):
        return kind
    if path.is_file():
        raise ValueError(f"{source} is a file that is not Parquet, Arrow or tar; pass one, a folder or a Hub id")
    if not HUB_ID.fullmatch(source):
        raise ValueError(f"there is no folder or file {source}; pass one that exists, or a data set's id on the Hub")
    return "hub"


def splits_in(source: str | Path) -> list[str | None]:
    """The splits that `open_images` can be asked for; [None] where there is nothing to choose.

    Example:

    ```python
    >>> from PIL import Image
    >>> for split in ("train", "test"):
    ...     Path("zoo", split, "cat").mkdir(parents=True)
    ...     Image.new("RGB", (4, 4)).save(f"zoo/{split}/cat/1.png")
    >>> splits_in("zoo")
    ['test', 'train']

    ```
    """
    name = str(source)
    if "://" in name:
        import_datasets(name)
        return list(by_split(remote_parquet_files(name)))
    kind, path = kind_of(name), Path(name)
    if kind == "folder":
        return [*split_folders(path)] or [None]
    if kind == "shards":
        return list(by_split(shard.as_posix() for shard in shards_of(name)))
    if kind == "hub":
        look_for(name, "dataset")
        return list(hub_splits(name))
    if is_saved_dataset(path):
        return list(saved_splits(path))
    files = [path] if path.is_file() else files_ending(path, f".{kind}")
    return list(by_split(str(file) for file in files))
