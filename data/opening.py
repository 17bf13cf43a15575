"""Open images, wherever they are: one function for folders, Parquet files and the Hub."""

import re
from pathlib import Path

from .decoding import MAX_PIXELS
from .folder_source import FolderSource
from .image_source import ImageSource, OnBadImage
from .table_source import open_hub_dataset, open_parquet

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def open_images(
    source: str | Path,
    split: str | None = None,
    label: str | None = None,
    on_bad_image: OnBadImage = "stop",
    *,
    streaming: bool = False,
    max_pixels: int = MAX_PIXELS,
) -> ImageSource:
    """Open a set of images; nothing is decoded before it is asked for.

    | source | labels |
    |---|---|
    | a folder of class folders, also below a folder for each split | the folders' names, in alphabetical order |
    | a folder of images | none |
    | a Parquet file with the columns `image` and `label`, or a folder of such files | as `datasets` wrote them |
    | the id of a data set on the Hub | as published |

    How a picture becomes RGB is said at `decode_image`.

    Args:
        source: One of the table.
        split: Which part, e.g. "test"; needed where there are several. The split of a Parquet file is its name
            without the number (test-00000-of-00001.parquet).
        label: The column of the labels, for Parquet and the Hub. `None`: "label" or the only column of class labels.
        on_bad_image: What iterating and `batches` do about an image that cannot be used: "stop" raises and names it,
            "skip" leaves it out and lists it in `source.bad_images`.
        streaming: Read Parquet files and the Hub row by row, without a copy on the disk: no index, no length. A
            folder is read as it is in any case.
        max_pixels: Larger images cannot be used.

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
    path, name = Path(source), str(source)
    options = {"on_bad_image": on_bad_image, "max_pixels": max_pixels}
    if path.is_file() and path.suffix.lower() != ".parquet":
        raise ValueError(f"{name} is a file that is not Parquet; pass a folder, a .parquet file or a data set's id")
    if path.is_file() or (path.is_dir() and next(path.rglob("*.parquet"), None) is not None):
        return open_parquet(path, name=name, split=split, label=label, streaming=streaming, **options)
    if path.is_dir():
        if label is not None:
            raise ValueError(f"{name} is a folder of images and has no column {label!r}; leave label out")
        return FolderSource(path, name=name, split=split, **options)
    if not _HUB_ID.fullmatch(name):
        raise ValueError(f"there is no folder or file {name}; pass one that exists, or a data set's id on the Hub")
    return open_hub_dataset(name, split=split, label=label, streaming=streaming, **options)
