"""RandAugment, 3-Augment and random erasing: which operations an image gets, drawn by counter.

Shapes: B images (B, 3, height, width) in [0, 1].
"""

import math
from collections.abc import Callable

import torch

from ..recipe import Augmentation
from . import operations as op
from .counter_random import Purpose, seed_of, uniform

_STRONGEST = 10.0


def _signed(strength: torch.Tensor, sign: torch.Tensor, most: float) -> torch.Tensor:
    return strength * most * sign


def affine_operation(which: str, most: float) -> Callable[..., torch.Tensor]:
    """Rotation ("rotate"), shear or shift ("shear_x", "shift_y", ...) by `most` times a strength and a sign."""

    def apply(images: torch.Tensor, strength: torch.Tensor, sign: torch.Tensor) -> torch.Tensor:
        amount, zero = _signed(strength, sign, most), torch.zeros_like(strength)
        nothing, along_x, along_y = (
            torch.stack([zero, zero], 1),
            torch.stack([amount, zero], 1),
            torch.stack([zero, amount], 1),
        )
        settings = {
            "rotate": (amount, nothing, nothing),
            "shear_x": (zero, along_x, nothing),
            "shear_y": (zero, along_y, nothing),
            "shift_x": (zero, nothing, along_x),
            "shift_y": (zero, nothing, along_y),
        }
        return op.affine(images, *settings[which])

    return apply


def _factor(operation: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda images, strength, sign: operation(images, 1 + _signed(strength, sign, 0.9))


# Strength in [0, 1] and a sign -> image. The ranges are those of RandAugment's own table at magnitude 10.
OPERATIONS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "identity": lambda images, strength, sign: images,
    "auto_contrast": lambda images, strength, sign: op.auto_contrast(images),
    "equalise": lambda images, strength, sign: op.equalise(images),
    "rotate": affine_operation("rotate", 30.0),
    "solarise": lambda images, strength, sign: op.solarise(images, 1 - strength),
    "colour": _factor(op.saturation),
    "posterise": lambda images, strength, sign: op.posterise(images, 8 - 4 * strength),
    "contrast": _factor(op.contrast),
    "brightness": _factor(op.brightness),
    "sharpness": _factor(op.sharpness),
    "shear_x": affine_operation("shear_x", 0.3),
    "shear_y": affine_operation("shear_y", 0.3),
    "shift_x": affine_operation("shift_x", 0.45),
    "shift_y": affine_operation("shift_y", 0.45),
}


def rand_augment(images: torch.Tensor, settings: Augmentation, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """RandAugment (Cubuk et al. 2020, arXiv 1909.13719), in place: so many of 14 operations, each drawn anew for each
    image."""
    count = settings.randaugment_operations
    drawn = uniform(seed, Purpose.RAND_AUGMENT, keys, 4 * count).unflatten(1, (count, 4)).to(images.device)
    for step in range(count):
        which = (drawn[:, step, 0] * len(OPERATIONS)).long()
        spread = settings.randaugment_spread * _normal(drawn[:, step, 1])
        strength = ((settings.randaugment_magnitude + spread) / _STRONGEST).clamp(0, 1)
        sign = torch.where(drawn[:, step, 2] < 0.5, -1.0, 1.0)
        for number, operation in enumerate(OPERATIONS.values()):
            chosen = (which == number).nonzero().flatten()
            if number and len(chosen):
                images[chosen] = operation(images[chosen], strength[chosen], sign[chosen])
    return images.clamp_(0, 1)


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


def _normal(numbers: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1) as standard normal ones."""
    return torch.special.ndtri(numbers.double().clamp(2.0**-25, 1 - 2.0**-25)).to(numbers.dtype)
