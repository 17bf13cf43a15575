"""AutoAugment (Cubuk et al. 2019, arXiv 1805.09501): the policies that were found for ImageNet and CIFAR-10.

Each image gets one of 25 pairs of operations; each of the two is applied with its probability, at its magnitude m of 0
to 10. Which pair, whether, and in which direction is drawn by counter. What m means is said in the paper's table 6 and,
where they say something else, in the programs that its authors published:

| operation | ImageNet | CIFAR-10 |
|---|---|---|
| shear, rotation | 0.03 m, 3 m degrees, either sign | the same |
| shift | m / 10 of 150 / 331 of the width, either sign | m / 10 of 10 / 32 |
| colour, contrast, brightness, sharpness | factor 0.1 + 0.18 m | the same |
| solarisation threshold, of 256 | 25.6 m | 256 - 25.6 m |
| bits of posterisation | 4 + 0.4 m | 4 - 0.4 m |

Implementations differ in the last two rows (and torchvision's in the factors); these are the paper's for ImageNet, and
the authors' program's for CIFAR-10. Whole numbers of thresholds and bits are cut off.

Shapes: B images (B, 3, height, width) in [0, 1].
"""

from collections.abc import Callable

import torch

from . import operations as op
from .counter_random import Purpose, uniform

Pair = tuple[tuple[str, float, int], tuple[str, float, int]]  # operation, probability, magnitude; twice

# Table 9 of the paper. Where an operation has no magnitude, it is 0 here.
IMAGENET: tuple[Pair, ...] = (
    (("posterise", 0.4, 8), ("rotate", 0.6, 9)),
    (("solarise", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
    (("posterise", 0.6, 7), ("posterise", 0.6, 6)),
    (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
    (("equalise", 0.4, 0), ("rotate", 0.8, 8)),
    (("solarise", 0.6, 3), ("equalise", 0.6, 0)),
    (("posterise", 0.8, 5), ("equalise", 1.0, 0)),
    (("rotate", 0.2, 3), ("solarise", 0.6, 8)),
    (("equalise", 0.6, 0), ("posterise", 0.4, 6)),
    (("rotate", 0.8, 8), ("colour", 0.4, 0)),
    (("rotate", 0.4, 9), ("equalise", 0.6, 0)),
    (("equalise", 0.0, 0), ("equalise", 0.8, 0)),
    (("invert", 0.6, 0), ("equalise", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("rotate", 0.8, 8), ("colour", 1.0, 2)),
    (("colour", 0.8, 8), ("solarise", 0.8, 7)),
    (("sharpness", 0.4, 7), ("invert", 0.6, 0)),
    (("shear_x", 0.6, 5), ("equalise", 1.0, 0)),
    (("colour", 0.4, 0), ("equalise", 0.6, 0)),
    (("equalise", 0.4, 0), ("solarise", 0.2, 4)),
    (("solarise", 0.6, 5), ("auto_contrast", 0.6, 0)),
    (("invert", 0.6, 0), ("equalise", 1.0, 0)),
    (("colour", 0.6, 4), ("contrast", 1.0, 8)),
    (("equalise", 0.8, 0), ("equalise", 0.6, 0)),
)

# Table 7.
CIFAR10: tuple[Pair, ...] = (
    (("invert", 0.1, 0), ("contrast", 0.2, 6)),
    (("rotate", 0.7, 2), ("shift_x", 0.3, 9)),
    (("sharpness", 0.8, 1), ("sharpness", 0.9, 3)),
    (("shear_y", 0.5, 8), ("shift_y", 0.7, 9)),
    (("auto_contrast", 0.5, 0), ("equalise", 0.9, 0)),
    (("shear_y", 0.2, 7), ("posterise", 0.3, 7)),
    (("colour", 0.4, 3), ("brightness", 0.6, 7)),
    (("sharpness", 0.3, 9), ("brightness", 0.7, 9)),
    (("equalise", 0.6, 0), ("equalise", 0.5, 0)),
    (("contrast", 0.6, 7), ("sharpness", 0.6, 5)),
    (("colour", 0.7, 7), ("shift_x", 0.5, 8)),
    (("equalise", 0.3, 0), ("auto_contrast", 0.4, 0)),
    (("shift_y", 0.4, 3), ("sharpness", 0.2, 6)),
    (("brightness", 0.9, 6), ("colour", 0.2, 8)),
    (("solarise", 0.5, 2), ("invert", 0.0, 0)),
    (("equalise", 0.2, 0), ("auto_contrast", 0.6, 0)),
    (("equalise", 0.2, 0), ("equalise", 0.6, 0)),
    (("colour", 0.9, 9), ("equalise", 0.6, 0)),
    (("auto_contrast", 0.8, 0), ("solarise", 0.2, 8)),
    (("brightness", 0.1, 3), ("colour", 0.7, 0)),
    (("solarise", 0.4, 5), ("auto_contrast", 0.9, 0)),
    (("shift_y", 0.9, 9), ("shift_y", 0.7, 9)),
    (("auto_contrast", 0.9, 0), ("solarise", 0.8, 3)),
    (("equalise", 0.8, 0), ("invert", 0.1, 0)),
    (("shift_y", 0.7, 9), ("auto_contrast", 0.9, 0)),
)

Operation = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]  # images, magnitude / 10, sign


def _factor(operation: Callable[..., torch.Tensor]) -> Operation:
    return lambda images, strength, sign: operation(images, 0.1 + 1.8 * strength)


def _displaced(direction: op.Direction, most: float) -> Operation:
    return lambda images, strength, sign: op.displace(images, strength * most * sign, direction)


def _operations(
    shift: float, threshold: Callable[..., torch.Tensor], bits: Callable[..., torch.Tensor]
) -> dict[str, Operation]:
    return {
        "auto_contrast": lambda images, strength, sign: op.auto_contrast(images),
        "equalise": lambda images, strength, sign: op.equalise(images),
        "invert": lambda images, strength, sign: op.invert(images),
        "rotate": _displaced("rotate", 30.0),
        "shear_x": _displaced("shear_x", 0.3),
        "shear_y": _displaced("shear_y", 0.3),
        "shift_x": _displaced("shift_x", shift),
        "shift_y": _displaced("shift_y", shift),
        "colour": _factor(op.saturation),
        "contrast": _factor(op.contrast),
        "brightness": _factor(op.brightness),
        "sharpness": _factor(op.sharpness),
        "solarise": lambda images, strength, sign: op.solarise(images, threshold(strength) / 255),
        "posterise": lambda images, strength, sign: op.posterise(images, bits(strength)),
    }


POLICIES = {"imagenet": IMAGENET, "cifar10": CIFAR10}
OPERATIONS: dict[str, dict[str, Operation]] = {
    "imagenet": _operations(150 / 331, lambda s: op.cut_off(256 * s), lambda s: 4 + op.cut_off(4 * s)),
    "cifar10": _operations(10 / 32, lambda s: 256 - op.cut_off(256 * s), lambda s: 4 - op.cut_off(4 * s)),
}


def auto_augment(images: torch.Tensor, policy: str, seed: int, keys: torch.Tensor) -> torch.Tensor:
    """Apply a pair of operations, drawn for each image, in place.

    Args:
        images: (B, 3, height, width) in [0, 1].
        policy: "imagenet" or "cifar10".
        keys: (B, 3), see `uniform`.

    Example:

    ```python
    >>> images, keys = torch.rand(2, 3, 8, 8), torch.tensor([[0, 5, 0], [0, 6, 0]])
    >>> changed = auto_augment(images.clone(), "imagenet", 0, keys)
    >>> changed[1:].equal(auto_augment(images[1:], "imagenet", 0, keys[1:]))
    True

    ```
    """
    pairs, operations = POLICIES[policy], OPERATIONS[policy]
    drawn = uniform(seed, Purpose.AUTO_AUGMENT, keys.cpu(), 5)
    pair = (drawn[:, 0] * len(pairs)).long()
    for step in range(2):
        names, chances, magnitudes = zip(*(each[step] for each in pairs), strict=True)
        applied = drawn[:, 1 + 2 * step] < torch.tensor(chances)[pair]
        strength = (torch.tensor(magnitudes)[pair] / 10).to(images.device)
        sign = torch.where(drawn[:, 2 + 2 * step] < 0.5, -1.0, 1.0).to(images.device)
        for name in dict.fromkeys(names):
            of_name = torch.tensor([each == name for each in names])[pair]
            chosen = (applied & of_name).nonzero().flatten().to(images.device)
            if len(chosen):
                images[chosen] = operations[name](images[chosen], strength[chosen], sign[chosen])
    return images.clamp_(0, 1)
