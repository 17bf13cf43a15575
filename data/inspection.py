"""What a look at every image of a split finds, in memory that is a hundred bytes an image.

Shapes: N images.
"""

import hashlib
import io
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from .decoding import ORIENTATION, BadImage, BadImageError, SourceUnreachableError
from .image_source import Encoded, ImageSource

DIGEST_BYTES = 16
THUMBNAIL = 4  # pixels along each side
_BATCH = 16
_NORMAL = (None, 1)


class Found(NamedTuple):
    """What is found out about one image.

    Args:
        digest: Of its RGB pixels and size.
        outline: 64 bits: where the picture, on 9 x 8 grey pixels, gets darker to the right.
        thumbnail: 4 x 4 pixels of RGB.
        kind: Format and mode, such as "JPEG RGB".
        turned: Its EXIF data turn or mirror it.
        transparent: It has transparency.
    """

    size: tuple[int, int]
    digest: bytes
    outline: bytes
    thumbnail: bytes
    kind: str
    turned: bool
    transparent: bool


@dataclass
class Inspection:
    """What was found in a split.

    Args:
        source: The split.
        sizes: (N, 2) width and height; 0 where an image cannot be used.
        digests, outlines, thumbnails: (N, ...) uint8, see `Found`.
        bad: What cannot be used.
        kinds: How many images have each format and mode.
        turned, transparent: How many images have an orientation in their EXIF data, and transparency.
    """

    source: ImageSource
    sizes: np.ndarray
    digests: np.ndarray
    outlines: np.ndarray
    thumbnails: np.ndarray
    bad: list[BadImage] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    turned: int = 0
    transparent: int = 0

    @property
    def usable(self) -> np.ndarray:
        """(N,) whether an image can be used."""
        return self.sizes[:, 0] > 0


def inspect(source: ImageSource, num_workers: int = 0, seen: Callable[[int], None] = lambda count: None) -> Inspection:
    """Read and decode every image once.

    Args:
        num_workers: Processes that do it; 0: this one.
        seen: Called with the number of images that were looked at since the last call.

    Raises:
        SourceUnreachableError: what holds the images does not answer.
    """
    count = len(source)
    result = Inspection(
        source,
        np.zeros((count, 2), dtype=np.int32),
        np.zeros((count, DIGEST_BYTES), dtype=np.uint8),
        np.zeros((count, 8), dtype=np.uint8),
        np.zeros((count, 3 * THUMBNAIL**2), dtype=np.uint8),
    )
    loader: DataLoader[Any] = DataLoader(
        _Looks(source), batch_size=_BATCH, num_workers=num_workers, collate_fn=list, worker_init_fn=_one_thread
    )
    for items in loader:
        for index, found in items:
            if isinstance(found, SourceUnreachableError):
                raise found
            if isinstance(found, BadImage):
                result.bad.append(found)
                continue
            result.sizes[index] = found.size
            for array, content in (
                (result.digests, found.digest),
                (result.outlines, found.outline),
                (result.thumbnails, found.thumbnail),
            ):
                array[index] = np.frombuffer(content, dtype=np.uint8)
            result.kinds[found.kind] += 1
            result.turned += found.turned
            result.transparent += found.transparent
        seen(len(items))
    return result


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


class _Looks(Dataset[Any]):
    def __init__(self, source: ImageSource) -> None:
        self.source = source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[int, Found | BadImage | SourceUnreachableError]:
        try:
            stored = self.source.encoded(index)
            image = self.source.decode(stored, index).image
        except BadImageError as error:
            return index, BadImage(index, self.source.name_of(index), str(error))
        except SourceUnreachableError as error:
            return index, SourceUnreachableError(str(error))
        return index, look_at(image, stored)


def look_at(image: Image.Image, stored: Encoded) -> Found:
    """What there is to find out about an image, decoded and as it is stored."""
    kind, turned, transparent = _header(stored)
    digest = hashlib.blake2b(f"{image.size}".encode(), digest_size=DIGEST_BYTES)
    digest.update(image.tobytes())
    small = image.resize((36, 32), Image.Resampling.BOX, reducing_gap=2.0)
    grey = np.asarray(small.convert("L").resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
    outline = np.packbits(grey[:, 1:] < grey[:, :-1]).tobytes()
    thumbnail = small.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()
    return Found(image.size, digest.digest(), outline, thumbnail, kind, turned, transparent)


def _header(stored: Encoded) -> tuple[str, bool, bool]:
    file = io.BytesIO(stored.file) if isinstance(stored.file, bytes) else stored.file
    assert file is not None
    with Image.open(file) as image:
        kind = f"{image.format} {image.mode}"
        try:
            turned = image.getexif().get(ORIENTATION) not in _NORMAL
        except Exception:  # broken metadata says nothing about the pixels
            turned = False
        return kind, turned, image.has_transparency_data
