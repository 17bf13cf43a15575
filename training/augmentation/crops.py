"""Crops: drawn for whole batches, applied to each image as it is decoded, because images have no common size yet.

Images are resized by torch, on bytes: bicubic with antialiasing as in PIL (nearly every value within one level of
255), and several times as fast where the processor has AVX2. A JPEG file that is much larger than what is made of it
is decoded at a fraction of its size. What comes out depends on the file, the recipe and the image's key alone.

Shapes: B images.
"""

import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from ..recipe import Augmentation
from .counter_random import Purpose, uniform

_ATTEMPTS = 10
_SPARE = 2.0  # a reduced image is still so many times larger than what is made of it

Box = tuple[int, int, int, int]  # left, top, right, bottom


class Crop:
    """What is cut out of one image: its numbers are drawn before its size is known.

    Called with the size of an image (width, height), as `decode_image` does, it says how many times smaller the image
    may be decoded.

    Args:
        size: (height, width) of the result.
        settings: Its `crop` says how.
        drawn: Uniform numbers of the image.

    Example:

    ```python
    >>> crop = Crop((8, 8), Augmentation(), [])
    >>> crop((64, 128))
    4.0
    >>> crop.cut(Image.new("RGB", (16, 32))).shape
    torch.Size([3, 8, 8])

    ```
    """

    def __init__(self, size: tuple[int, int], settings: Augmentation, drawn: list[float]) -> None:
        self.size, self.settings, self.drawn = size, settings, drawn
        self._full: tuple[int, int] | None = None  # where the image comes smaller than it is

    def __call__(self, full: tuple[int, int]) -> float:
        self._full = full
        left, top, right, bottom = self.box(full)
        width, height = self._resized(full)
        return max(min((right - left) / width, (bottom - top) / height) / _SPARE, 1.0)

    def cut(self, image: Image.Image) -> torch.Tensor:
        """(3, height, width) uint8 of an RGB image, as large as it is or reduced."""
        full = self._full or image.size
        width, height = self._resized(full)
        box = self.box(full)
        if image.size != full:
            box = _scaled(box, image.width / full[0], image.height / full[1], image.size)
        if box != (0, 0, *image.size):
            image = image.crop(box)
        pixels = resize(to_tensor(image), (height, width))
        return self._offset(pixels) if self.settings.crop == "simple" else pixels

    def box(self, full: tuple[int, int]) -> Box:
        """What is cut out of an image of this (width, height)."""
        if self.settings.crop == "resized":
            return _resized_crop_box(full, self.settings, self.drawn)
        return (0, 0, *full)

    def _resized(self, full: tuple[int, int]) -> tuple[int, int]:
        """(width, height) that the box is resized to."""
        height, width = self.size
        if self.settings.crop != "simple":
            return width, height
        factor = max(width / full[0], height / full[1])
        return max(width, round(full[0] * factor)), max(height, round(full[1] * factor))

    def _offset(self, pixels: torch.Tensor) -> torch.Tensor:
        """The rest of DeiT III's simple random crop: pad by reflection, crop at random."""
        height, width = self.size
        padding = min(self.settings.crop_padding, pixels.shape[2] - 1, pixels.shape[1] - 1)
        padded = np.pad(pixels.numpy(), ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
        left = int(self.drawn[0] * (padded.shape[2] - width + 1))
        top = int(self.drawn[1] * (padded.shape[1] - height + 1))
        return torch.from_numpy(padded[:, top : top + height, left : left + width].copy())


def draw_crops(size: tuple[int, int], settings: Augmentation, seed: int, keys: torch.Tensor) -> list[Crop]:
    """The crops of images with these keys (B, 3), see `uniform`."""
    count = {"resized": 4 * _ATTEMPTS, "simple": 2, "none": 0}[settings.crop]
    drawn = uniform(seed, Purpose.CROP, keys, count).tolist() if count else [[]] * len(keys)
    return [Crop(size, settings, numbers) for numbers in drawn]


def _resized_crop_box(full: tuple[int, int], settings: Augmentation, drawn: list[float]) -> Box:
    """A random resized crop (Szegedy et al. 2015, arXiv 1409.4842).

    Area and logarithm of the ratio are uniform; the first of ten attempts that fits is taken, or else the largest
    crop in the middle whose ratio is allowed.

    Args:
        full: (width, height) of the image.
        drawn: Four uniform numbers for each attempt.
    """
    low, high = settings.crop_scale
    logs = math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])
    for attempt in range(_ATTEMPTS):
        share, log, across, down = drawn[4 * attempt : 4 * attempt + 4]
        area = (low + (high - low) * share) * full[0] * full[1]
        ratio = math.exp(logs[0] + (logs[1] - logs[0]) * log)
        width, height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 1 <= width <= full[0] and 1 <= height <= full[1]:
            left, top = math.floor(across * (full[0] - width + 1)), math.floor(down * (full[1] - height + 1))
            return left, top, left + width, top + height
    return _middle(full, settings.crop_ratio)


def _middle(size: tuple[int, int], ratios: tuple[float, float]) -> Box:
    width, height = size
    if width / height < ratios[0]:
        height = round(width / ratios[0])
    elif width / height > ratios[1]:
        width = round(height * ratios[1])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def _scaled(box: Box, across: float, down: float, size: tuple[int, int]) -> Box:
    """The box in a reduced image of this size; at least a pixel."""
    left, top = min(round(box[0] * across), size[0] - 1), min(round(box[1] * down), size[1] - 1)
    right, bottom = min(round(box[2] * across), size[0]), min(round(box[3] * down), size[1])
    return left, top, max(right, left + 1), max(bottom, top + 1)


def resize(pixels: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """(3, h, w) uint8 -> (3, height, width), bicubic with antialiasing."""
    if tuple(pixels.shape[1:]) == size:
        return pixels
    return F.interpolate(pixels.unsqueeze(0), size=size, mode="bicubic", antialias=True)[0]


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
