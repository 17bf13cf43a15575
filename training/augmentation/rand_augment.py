"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): so many operations of a table for each image, at a magnitude m.

Programs differ in the table and in what m of 0 to 10 means, and a published result is one of its program. "timm" is
`rand-...-inc1` of timm/data/auto_augment.py (DeiT, BEiT, MAE), "big_vision" is `randaug` of its pp/autoaugment.py, and
"standard" is ours, where what has a magnitude is stronger with it. [x] is the whole part of x:

| operation | standard | timm | big_vision |
|---|---|---|---|
| probability that a drawn operation is applied | 1 | 1/2 | 1 |
| identity | one of 14 | no | no |
| inversion | no | one of 15 | one of 16 |
| rotation | 3 m degrees, either sign | the same | the same |
| shear | 0.03 m, either sign, about the centre | the same, about the upper left corner | as timm |
| shift | 0.045 m of the side, either sign | the same | 10 m pixels, either sign |
| colour, contrast, brightness, sharpness | factor 1 + 0.09 m or 1 - 0.09 m | the same | factor 0.1 + 0.18 m |
| solarisation threshold, of 256 | 255 - 25.5 m | 256 - [25.6 m] | [25.6 m], but 0 at m = 10 |
| bits of posterisation | 8 - 0.4 m, rounded | 4 - [0.4 m] | [0.4 m] |
| added to what is darker than 128 | no | [11 m] | [11 m] |
| square that is cut out | no | no | of 2 [4 m] pixels |
| interpolation | bilinear | bicubic | nearest |
| what comes from outside | 0.5 | ImageNet's mean | 128 / 255 |

big_vision's results came with two slips of its program, which are followed: 256 becomes 0 as a byte, so that
solarisation at m = 10 inverts the whole image (its issue 110), and contrast is stretched about a grey of
height * width / 256, which is 196 at 224 pixels, and not about the mean (its issue 109). Not followed: both programs
round to bytes after each operation, Pillow's bicubic kernel has a = -0.5 and torch's -0.75, and ImageNet's mean is
outside for timm whatever the recipe normalises with.

Shapes: B images (B, 3, height, width) in [0, 1].
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from ..recipe import Augmentation
from . import operations as op
from .counter_random import Purpose, uniform

_STRONGEST = 10.0
_IMAGENET_MEAN = (124 / 255, 116 / 255, 104 / 255)  # as timm rounds it for Pillow
_GREY = 128 / 255

Operation = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # images, amount -> images
Amount = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # m / 10 (B,), uniform numbers (B, 2) -> (B, ...)


@dataclass(frozen=True)
class Table:
    """A set of operations.

    Args:
        operations: By name, each with the amount that is made of a magnitude.
        probability: That a drawn operation is applied.
    """

    operations: dict[str, tuple[Operation, Amount]]
    probability: float = 1.0


def _no_amount(operation: Callable[[torch.Tensor], torch.Tensor]) -> tuple[Operation, Amount]:
    return lambda images, amount: operation(images), lambda s, drawn: s


def _either(most: float) -> Amount:
    return lambda s, drawn: s * most * torch.where(drawn[:, 0] < 0.5, -1.0, 1.0)


def _around_one(s: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return 1 + _either(0.9)(s, drawn)


def _rising(s: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    return 0.1 + 1.8 * s


def _contrast_by_area(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """big_vision's: its histogram is summed without the levels, which leaves the number of pixels."""
    height, width = images.shape[-2:]
    return op.blend(images, min(height * width // 256, 255) / 255, factor)


def _shift_by_pixels(images: torch.Tensor, amount: torch.Tensor, direction: op.Direction) -> torch.Tensor:
    side = images.shape[-1 if direction == "shift_x" else -2]
    return _nearest(images, amount / side, direction)


_bicubic = partial(op.displace, fill=_IMAGENET_MEAN, interpolation="bicubic", shear_from="corner")
_nearest = partial(op.displace, fill=_GREY, interpolation="nearest", shear_from="corner")

# s is m / 10. The order is that of the draw: another one gives other images.
STANDARD = Table(
    {
        "identity": _no_amount(lambda images: images),
        "auto_contrast": _no_amount(op.auto_contrast),
        "equalise": _no_amount(op.equalise),
        "rotate": (partial(op.displace, direction="rotate"), _either(30.0)),
        "solarise": (op.solarise, lambda s, drawn: 1 - s),
        "colour": (op.saturation, _around_one),
        "posterise": (op.posterise, lambda s, drawn: 8 - 4 * s),
        "contrast": (op.contrast, _around_one),
        "brightness": (op.brightness, _around_one),
        "sharpness": (op.sharpness, _around_one),
        "shear_x": (partial(op.displace, direction="shear_x"), _either(0.3)),
        "shear_y": (partial(op.displace, direction="shear_y"), _either(0.3)),
        "shift_x": (partial(op.displace, direction="shift_x"), _either(0.45)),
        "shift_y": (partial(op.displace, direction="shift_y"), _either(0.45)),
    }
)
TIMM = Table(
    {
        "auto_contrast": _no_amount(op.auto_contrast),
        "equalise": _no_amount(op.equalise),
        "invert": _no_amount(op.invert),
        "rotate": (partial(_bicubic, direction="rotate"), _either(30.0)),
        "posterise": (op.posterise, lambda s, drawn: 4 - op.cut_off(4 * s)),
        "solarise": (op.solarise, lambda s, drawn: (256 - op.cut_off(256 * s)) / 255),
        "solarise_add": (op.solarise_add, lambda s, drawn: op.cut_off(110 * s) / 255),
        "colour": (op.saturation, _around_one),
        "contrast": (op.contrast, _around_one),
        "brightness": (op.brightness, _around_one),
        "sharpness": (op.sharpness, _around_one),
        "shear_x": (partial(_bicubic, direction="shear_x"), _either(0.3)),
        "shear_y": (partial(_bicubic, direction="shear_y"), _either(0.3)),
        "shift_x": (partial(_bicubic, direction="shift_x"), _either(0.45)),
        "shift_y": (partial(_bicubic, direction="shift_y"), _either(0.45)),
    },
    probability=0.5,
)
BIG_VISION = Table(
    {
        "auto_contrast": _no_amount(op.auto_contrast),
        "equalise": _no_amount(op.equalise),
        "invert": _no_amount(op.invert),
        "rotate": (partial(_nearest, direction="rotate"), _either(30.0)),
        "posterise": (op.posterise, lambda s, drawn: op.cut_off(4 * s)),
        "solarise": (op.solarise, lambda s, drawn: op.cut_off(256 * s) % 256 / 255),
        "colour": (op.saturation, _rising),
        "contrast": (_contrast_by_area, _rising),
        "brightness": (op.brightness, _rising),
        "sharpness": (op.sharpness, _rising),
        "shear_x": (partial(_nearest, direction="shear_x"), _either(0.3)),
        "shear_y": (partial(_nearest, direction="shear_y"), _either(0.3)),
        "shift_x": (partial(_shift_by_pixels, direction="shift_x"), _either(100.0)),
        "shift_y": (partial(_shift_by_pixels, direction="shift_y"), _either(100.0)),
        "cut_out": (
            lambda images, amount: op.cut_out(images, amount[:, 0], amount[:, 1:], _GREY),
            lambda s, drawn: torch.cat([op.cut_off(40 * s).unsqueeze(1), drawn], dim=1),
        ),
        "solarise_add": (op.solarise_add, lambda s, drawn: op.cut_off(110 * s) / 255),
    }
)
TABLES = {"standard": STANDARD, "timm": TIMM, "big_vision": BIG_VISION}


def rand_augment(images: torch.Tensor, settings: Augmentation, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """Apply operations, each drawn anew for each image, in place.

    Args:
        images: (B, 3, height, width) in [0, 1].
        settings: Their number, magnitude, spread and table.
        keys: (B, 3), see `uniform`.

    Example:

    ```python
    >>> images, keys = torch.rand(2, 3, 8, 8), torch.tensor([[0, 5, 0], [0, 6, 0]])
    >>> settings = Augmentation(randaugment_operations=2, randaugment_table="timm")
    >>> changed = rand_augment(images.clone(), settings, 0, keys)
    >>> changed[1:].allclose(rand_augment(images[1:], settings, 0, keys[1:]), atol=1e-6)
    True

    ```
    """
    table, count = TABLES[settings.randaugment_table], settings.randaugment_operations
    drawn = uniform(seed, Purpose.RAND_AUGMENT, keys, 4 * count).unflatten(1, (count, 4)).to(images.device)
    for numbers in drawn.unbind(1):  # which, how strong, which way, and whether; where all are applied, a place
        which = (numbers[:, 0] * len(table.operations)).long()
        spread = settings.randaugment_spread * _normal(numbers[:, 1])
        strength = ((settings.randaugment_magnitude + spread) / _STRONGEST).clamp(0, 1)
        which[numbers[:, 3] >= table.probability] = -1
        for number, (operation, amount) in enumerate(table.operations.values()):
            chosen = (which == number).nonzero().flatten()
            if len(chosen):
                images[chosen] = operation(images[chosen], amount(strength[chosen], numbers[chosen, 2:]))
    return images.clamp_(0, 1)


def _normal(numbers: torch.Tensor) -> torch.Tensor:
    """Uniform numbers in [0, 1) as standard normal ones."""
    return torch.special.ndtri(numbers.double().clamp(2.0**-25, 1 - 2.0**-25)).to(numbers.dtype)
