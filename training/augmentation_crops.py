"""Crops, drawn for whole batches and applied to PIL images: they come before images have one size.

Shapes: B images.
"""

import math

import numpy as np
import torch
from PIL import Image

from .counter_random import Purpose, uniform
from .recipe import Augmentation

_ATTEMPTS = 10


def resized_crop_boxes(
    sizes: list[tuple[int, int]], settings: Augmentation, seed: int, keys: torch.Tensor
) -> list[tuple[int, int, int, int]]:
    """Random resized crops (Szegedy et al. 2015, arXiv 1409.4842) as (left, top, right, bottom).

    Area and logarithm of the ratio are uniform; the first of ten attempts that fits is taken, or else the largest
    crop in the middle whose ratio is allowed.

    Args:
        sizes: (width, height) of each image.
        keys: (B, 3), see `uniform`.
    """
    drawn = uniform(seed, Purpose.CROP, keys, 4 * _ATTEMPTS).unflatten(1, (_ATTEMPTS, 4)).double()
    size = torch.tensor(sizes, dtype=torch.float64).unsqueeze(1)  # (B, 1, 2)
    low, high = settings.crop_scale
    area = (low + (high - low) * drawn[..., 0]) * size.prod(-1)
    logs = math.log(settings.crop_ratio[0]), math.log(settings.crop_ratio[1])
    ratio = (logs[0] + (logs[1] - logs[0]) * drawn[..., 1]).exp()
    width, height = (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
    fits = (width <= size[..., 0]) & (height <= size[..., 1]) & (width >= 1) & (height >= 1)
    left = (drawn[..., 2] * (size[..., 0] - width + 1)).floor()
    top = (drawn[..., 3] * (size[..., 1] - height + 1)).floor()
    boxes = torch.stack([left, top, left + width, top + height], dim=-1).long()  # (B, attempts, 4)
    first = fits.long().argmax(1)
    return [
        tuple(boxes[i, first[i]].tolist()) if fits[i].any() else _middle(sizes[i], settings.crop_ratio)
        for i in range(len(sizes))
    ]


def _middle(size: tuple[int, int], ratios: tuple[float, float]) -> tuple[int, int, int, int]:
    width, height = size
    if width / height < ratios[0]:
        height = round(width / ratios[0])
    elif width / height > ratios[1]:
        width = round(height * ratios[1])
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


def crop_batch(
    images: list[Image.Image], size: tuple[int, int], settings: Augmentation, seed: int, keys: torch.Tensor
) -> torch.Tensor:
    """Images of any sizes -> (B, 3, height, width) uint8.

    Args:
        images: RGB.
        size: (height, width).
        settings: Its `crop` says how.
    """
    height, width = size
    if settings.crop == "resized":
        boxes = resized_crop_boxes([image.size for image in images], settings, seed, keys)
        cut = [
            image.resize((width, height), Image.Resampling.BICUBIC, box=box)
            for image, box in zip(images, boxes, strict=True)
        ]
        return torch.stack([to_tensor(image) for image in cut])
    if settings.crop == "none":
        return torch.stack([to_tensor(_resized(image, (width, height))) for image in images])
    offsets = uniform(seed, Purpose.CROP, keys, 2)
    return torch.stack([_simple(image, size, settings, at) for image, at in zip(images, offsets, strict=True)])


def _simple(image: Image.Image, size: tuple[int, int], settings: Augmentation, offset: torch.Tensor) -> torch.Tensor:
    """DeiT III's simple random crop: resize until both sides reach the size, pad by reflection, crop at random."""
    height, width = size
    factor = max(width / image.width, height / image.height)
    image = _resized(image, (max(width, round(image.width * factor)), max(height, round(image.height * factor))))
    padding = min(settings.crop_padding, image.width - 1, image.height - 1)
    pixels = np.pad(np.asarray(image), ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
    left = int(offset[0] * (pixels.shape[1] - width + 1))
    top = int(offset[1] * (pixels.shape[0] - height + 1))
    return torch.from_numpy(pixels[top : top + height, left : left + width].copy()).permute(2, 0, 1)


def _resized(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """(3, height, width) uint8."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)
