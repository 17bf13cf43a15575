"""3-Augment, colour jitter and random erasing: which operations an image gets, drawn by counter.

Shapes: B images (B, 3, height, width) in [0, 1].
"""

import math

import torch

from ..recipe import Augmentation
from . import operations as op
from .counter_random import Purpose, seed_of, uniform


def three_augment(images: torch.Tensor, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """One of grey, solarised at one half, blurred by 0.1 to 2 pixels (DeiT III, arXiv 2204.07118), in place."""
    drawn = uniform(seed, Purpose.THREE_AUGMENT, keys, 2).to(images.device)
    which = (drawn[:, 0] * 3).long()
    greyed, solarised, blurred = ((which == number).nonzero().flatten() for number in range(3))
    images[greyed] = op.grey(images[greyed]).expand(-1, 3, -1, -1)
    images[solarised] = op.solarise(images[solarised], torch.full_like(drawn[solarised, 1], 128 / 255))
    if len(blurred):
        images[blurred] = op.blur(images[blurred], 0.1 + 1.9 * drawn[blurred, 1])
    return images


def colour_jitter(images: torch.Tensor, settings: Augmentation, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """Brightness, contrast and saturation, in this order and in place, each factor uniform in [1 - x, 1 + x]."""
    factors = 2 * uniform(seed, Purpose.COLOUR, keys, 3).to(images.device) - 1
    widths = (settings.brightness, settings.contrast, settings.saturation)
    for width, operation, factor in zip(
        widths, (op.brightness, op.contrast, op.saturation), factors.unbind(1), strict=True
    ):
        if width:
            operation(images, (1 + width * factor).clamp(min=0), inplace=True)
    return images


def erase(pixels: torch.Tensor, settings: Augmentation, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """Random erasing (Zhong et al. 2017, arXiv 1708.04896), of normalised pixels, in place: 2 % to a third of the area.

    The logarithm of height / width is uniform between those of 0.3 and 1 / 0.3; a box that does not fit is cut.
    """
    drawn = uniform(seed, Purpose.ERASE, keys, 5)
    height, width = pixels.shape[-2:]
    area = (0.02 + (1 / 3 - 0.02) * drawn[:, 1]) * height * width
    ratio = (math.log(0.3) * (2 * drawn[:, 2] - 1)).exp()
    tall = (area * ratio).sqrt().round().clamp(1, height)
    wide = (area / ratio).sqrt().round().clamp(1, width)
    top = (drawn[:, 3] * (height - tall + 1)).floor()
    left = (drawn[:, 4] * (width - wide + 1)).floor()
    boxes = torch.stack([top, top + tall, left, left + wide], dim=1).long().tolist()
    for index in (drawn[:, 0] < settings.erasing).nonzero().flatten().tolist():
        first, last, begin, end = boxes[index]
        box = pixels[index, :, first:last, begin:end]
        if settings.erasing_fill == "mean":
            box.zero_()
        else:
            generator = torch.Generator().manual_seed(seed_of(seed, Purpose.ERASE, *keys[index].tolist(), 1))
            box.copy_(torch.randn(box.shape, generator=generator))
    return pixels
