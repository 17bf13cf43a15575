"""From the bytes of an image file to a picture of 8 bits in red, green and blue, the same way for every source."""

import contextlib
import errno
import io
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from ..configuration.reasons import first_line

MAX_PIXELS = 89_478_485  # Pillow's own limit: a quarter of a GiB at 3 bytes a pixel
MAX_SIDES_RATIO = 100  # resized by its shorter side, a longer strip would take gigabytes
WHITE_OF_16_BITS = 65_535

ORIENTATION = 274  # the EXIF tag
_TURNED = (5, 6, 7, 8)  # its values for pictures that lie on their side
# What a network, or a disk behind one, says when it does not answer: nothing about the file.
_OUTAGES = {
    getattr(errno, name, None)
    for name in (
        "ETIMEDOUT",
        "ESTALE",
        "ENETDOWN",
        "ENETUNREACH",
        "EHOSTDOWN",
        "EHOSTUNREACH",
        "ECONNRESET",
        "ENOTCONN",
    )
} - {None}
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")


class BadImageError(ValueError):
    """An image that cannot be used; the message names it and says why."""


class SourceUnreachableError(OSError):
    """What holds the images does not answer. It says nothing about them: none is left out because of it."""

    @classmethod
    def at(cls, name: str, error: Exception) -> "SourceUnreachableError":
        """Of the image of that name, for that reason."""
        return cls(f"{name} cannot be read now ({in_short(error)}); try again when its storage answers")


def is_outage(error: Exception) -> bool:
    """Whether an error tells of the way to a file, not of the file."""
    return isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _OUTAGES


@dataclass(frozen=True)
class BadImage:
    """An image that was left out.

    Args:
        index: Its place in the source.
        name: Its file, or its row.
        reason: Why it cannot be used.
    """

    index: int
    name: str
    reason: str


def decode_image(
    file: bytes | str | Path,
    name: str | None = None,
    *,
    max_pixels: int = MAX_PIXELS,
    reduce: Callable[[tuple[int, int]], float] | None = None,
) -> Image.Image:
    """Read an image as RGB, as a viewer shows it.

    | in the file | what becomes of it |
    |---|---|
    | EXIF orientation | is applied |
    | transparency, also of a palette | is laid on white |
    | palette, CMYK, YCbCr, one bit | is converted; colour profiles are not applied |
    | 16-bit grey | value / 257, rounded: 65,535 is white, nothing is clipped |
    | grey of 32-bit integers | as 16-bit grey if no value is above 65,535, otherwise refused: its white is not known |
    | grey in floating point | 0 is black and 1 is white; refused if a value is outside |
    | several frames | the first |

    Args:
        file: The bytes of the file, or its path.
        name: What the image is called in messages. `None`: the path.
        max_pixels: Larger images are refused from their header, before any memory is taken.
        reduce: Called with (width, height) from the header of every image, upright; says how many times smaller the
            image may be given. A JPEG file is then decoded at 1/2, 1/4 or 1/8, which takes less time.

    Returns:
        A PIL image in mode RGB that depends on no open file.

    Raises:
        BadImageError: it is missing, broken, cut short, too large, or more than 100 times longer than wide.
        SourceUnreachableError: a network file system does not answer.

    Example:

    ```python
    >>> Image.new("CMYK", (4, 3)).save("grey.jpg")
    >>> image = decode_image("grey.jpg")
    >>> image.mode, image.size
    ('RGB', (4, 3))

    ```
    """
    name = name if name is not None else ("an image" if isinstance(file, bytes) else str(file))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's hints on broken metadata and large images; we check the size
            with Image.open(io.BytesIO(file) if isinstance(file, bytes) else file) as image:
                _check_size(image.size, max_pixels)
                if reduce is not None:
                    _decode_smaller(image, reduce(_upright_size(image)))
                return _to_rgb(_upright(image))
    except BadImageError as error:
        raise BadImageError(f"{name}: {error}") from None
    except Image.DecompressionBombError:
        raise BadImageError(f"{name}: it has more than {max_pixels:,} pixels; make it smaller") from None
    except Exception as error:  # each format's decoder has errors of its own
        if is_outage(error):
            raise SourceUnreachableError.at(name, error) from error
        raise BadImageError(f"{name}: it cannot be read as an image ({in_short(error)})") from error


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise BadImageError(f"it has {width:,} x {height:,} pixels, more than {max_pixels:,}; make it smaller")
    if min(size) < 1:
        raise BadImageError(f"it has {width} x {height} pixels")
    if max(size) > MAX_SIDES_RATIO * min(size):
        raise BadImageError(
            f"it has {width:,} x {height:,} pixels, and one side may be at most {MAX_SIDES_RATIO} times the other"
        )


def _upright_size(image: Image.Image) -> tuple[int, int]:
    try:
        turned = image.getexif().get(ORIENTATION, 1) in _TURNED
    except Exception:  # broken metadata says nothing about the pixels
        turned = False
    return image.size[::-1] if turned else image.size


def _decode_smaller(image: Image.Image, factor: float) -> None:
    scale = next((scale for scale in (8, 4, 2) if scale <= factor), 1)
    if scale > 1 and image.format == "JPEG":
        image.draft(image.mode, (max(image.width // scale, 1), max(image.height // scale, 1)))


def _upright(image: Image.Image) -> Image.Image:
    image.load()
    with contextlib.suppress(Exception):  # broken metadata says nothing about the pixels
        ImageOps.exif_transpose(image, in_place=True)
    return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BITS or image.mode in ("I", "F"):
        return Image.fromarray(_grey_of_8_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, image).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _grey_of_8_bits(image: Image.Image) -> np.ndarray[Any, Any]:
    values = np.asarray(image).astype(np.float64)
    low, high = float(values.min()), float(values.max())
    white = 1.0 if image.mode == "F" else float(WHITE_OF_16_BITS)
    if not (math.isfinite(low) and math.isfinite(high) and low >= 0 and high <= white):
        raise BadImageError(f"its grey values go from {low:g} to {high:g}, not within the scale from 0 to {white:g}")
    return np.rint(values * (255 / white)).astype(np.uint8)


def in_short(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, Image.UnidentifiedImageError):
        return "its format is not known"
    return first_line(error)
