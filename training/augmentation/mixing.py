"""Mixup (Zhang et al. 2018, arXiv 1710.09412) and CutMix (Yun et al. 2019, arXiv 1905.04899) of neighbours.

Images 2 j and 2 j + 1 of a batch are mixed with each other, with a share drawn for the pair. Batches are cut from one
order of the epoch, in even sizes, so that the pairs are the same for any number of processes and accumulation steps.

Shapes: B images, K labels.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional as F

from ..recipe import Augmentation
from .counter_random import Purpose, uniform

_POINTS = 2048


@lru_cache
def _quantiles(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Values x in [0, 1/2] and P(X <= x) of Beta(alpha, alpha)."""
    if alpha < 1:  # the integral in w = x^alpha, which is smooth at 0
        w = np.linspace(0, 0.5**alpha, _POINTS)
        x = w ** (1 / alpha)
        density = (1 - x) ** (alpha - 1)
    else:  # 5 standard deviations: of a large alpha all of it is near 1/2
        w = x = np.linspace(max(0, 0.5 - 5 / math.sqrt(2 * alpha + 1)), 0.5, _POINTS)
        density = (4 * x * (1 - x)) ** (alpha - 1)
    integral = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(w))])
    return x, integral / integral[-1] / 2


def symmetric_beta(numbers: torch.Tensor, alpha: float) -> torch.Tensor:
    """Uniform numbers in [0, 1) as Beta(alpha, alpha), by its quantile function.

    Example:

    ```python
    >>> symmetric_beta(torch.tensor([0.25, 0.5, 0.75]), 1.0)
    tensor([0.2500, 0.5000, 0.7500])

    ```
    """
    x, probability = _quantiles(alpha)
    u = numbers.double().numpy()
    lower = np.interp(np.minimum(u, 1 - u), probability, x)
    return torch.from_numpy(np.where(u <= 0.5, lower, 1 - lower)).float()


def mix(
    pixels: torch.Tensor, labels: torch.Tensor, num_labels: int, settings: Augmentation, seed: int, keys: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix neighbours; an odd image at the end stays as it is.

    Args:
        pixels: (B, 3, height, width).
        labels: (B,) integers, or (B, K).

    Returns:
        Pixels, and targets (B, K).
    """
    targets = F.one_hot(labels, num_labels).float() if not labels.is_floating_point() else labels
    pairs = len(pixels) // 2
    if not pairs:
        return pixels, targets
    drawn = uniform(seed, Purpose.MIX, keys[0 : 2 * pairs : 2].cpu(), 5)  # of the first of each pair
    cut = _wants_cutmix(drawn[:, 1], settings)
    share = torch.where(
        cut, symmetric_beta(drawn[:, 2], settings.cutmix or 1.0), symmetric_beta(drawn[:, 2], settings.mixup or 1.0)
    )
    share = torch.where(drawn[:, 0] < settings.mix_probability, share, 1.0)
    masks, share = _masks(share, cut, drawn[:, 3:], pixels.shape[-2:])
    masks, share = masks.to(pixels), share.to(pixels.device)

    def of_pair(values: torch.Tensor) -> torch.Tensor:
        return values.repeat_interleave(2, dim=0)

    others = torch.arange(2 * pairs, device=pixels.device) ^ 1
    keep = of_pair(masks)
    body, partner = pixels[: 2 * pairs], pixels[others]
    mixed = torch.cat([keep * body + (1 - keep) * partner, pixels[2 * pairs :]])
    own = of_pair(share).unsqueeze(1)
    first, second = targets[: 2 * pairs], targets[others]
    joined = own * first + (1 - own) * second
    if settings.mixed_labels == "present":
        joined = torch.maximum(first * (own > 0), second * (own < 1))
    return mixed, torch.cat([joined, targets[2 * pairs :]])


def _wants_cutmix(numbers: torch.Tensor, settings: Augmentation) -> torch.Tensor:
    if settings.mixup and settings.cutmix:
        return numbers < 0.5
    return torch.full_like(numbers, bool(settings.cutmix), dtype=torch.bool)


def _masks(
    share: torch.Tensor, cut: torch.Tensor, centres: torch.Tensor, size: torch.Size
) -> tuple[torch.Tensor, torch.Tensor]:
    """What stays of an image, (pairs, 1, height, width), and its share of it: a box may reach over the border."""
    height, width = size
    side = (1 - share).clamp(min=0).sqrt()
    rows = torch.arange(height).view(1, -1, 1)
    columns = torch.arange(width).view(1, 1, -1)

    def within(place: torch.Tensor, centre: torch.Tensor, length: int) -> torch.Tensor:
        middle, half = (centre * length).floor().view(-1, 1, 1), (side * length / 2).floor().view(-1, 1, 1)
        return (place >= middle - half) & (place < middle + half)

    box = within(rows, centres[:, 0], height) & within(columns, centres[:, 1], width)
    kept = (~box).float()
    masks = torch.where(cut.view(-1, 1, 1), kept, share.view(-1, 1, 1).expand_as(kept))
    return masks.unsqueeze(1), torch.where(cut, kept.mean((1, 2)), share)
