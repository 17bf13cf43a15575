"""Light augmentation of small grey images: a random affine map and a smooth random displacement.

Shapes: B batch, K numbers that say how an image is warped.
"""

import math

import torch
from torch.nn import functional as F

MAX_DEGREES = 12.0
MAX_SCALE = 0.12  # along each axis
MAX_SHEAR = 0.15
MAX_SHIFT = 1.5  # pixels
MAX_DISPLACEMENT = 1.0  # pixels, of each node of the elastic grid
ELASTIC_GRID = 5  # nodes along each side

_NUM_AFFINE = 6
NUM_PARAMETERS = _NUM_AFFINE + 2 * ELASTIC_GRID**2


def warp(images: torch.Tensor, parameters: torch.Tensor) -> torch.Tensor:
    """Rotate, scale, shear, shift and bend images (B, height, width) by `parameters` (B, K); outside is 0.

    Parameters of 0 leave an image as it is.

    Example:

    ```python
    >>> images = torch.rand(2, 28, 28)
    >>> torch.allclose(warp(images, torch.zeros(2, NUM_PARAMETERS)), images, atol=1e-4)
    True

    ```
    """
    affine, elastic = parameters.split([_NUM_AFFINE, 2 * ELASTIC_GRID**2], dim=1)
    images = images.unsqueeze(1)  # (B, 1, height, width)
    places = F.affine_grid(_affine_maps(affine, images.shape[-1]), list(images.shape), align_corners=False)
    places = places + _displacements(elastic, images.shape)  # (B, height, width, 2), an image spans [-1, 1]
    return F.grid_sample(images, places, padding_mode="zeros", align_corners=False).squeeze(1)


def _affine_maps(numbers: torch.Tensor, width: int) -> torch.Tensor:
    """From places in the output to places in the input: (B, 6) -> (B, 2, 3)."""
    angle = numbers[:, 0] * math.radians(MAX_DEGREES)
    scale = 1 + numbers[:, 1:3] * MAX_SCALE
    shear = numbers[:, 3] * MAX_SHEAR
    shift = numbers[:, 4:6] * MAX_SHIFT * 2 / width
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rotation = torch.stack([cosine, -sine, sine, cosine], dim=1).unflatten(1, (2, 2))
    stretch = torch.stack([1 / scale[:, 0], shear, zero, 1 / scale[:, 1]], dim=1).unflatten(1, (2, 2))
    return torch.cat([rotation @ stretch, shift.unsqueeze(2)], dim=2)


def _displacements(numbers: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """A smooth field through random nodes: (B, 2 nodes^2) -> (B, height, width, 2)."""
    nodes = numbers.unflatten(1, (2, ELASTIC_GRID, ELASTIC_GRID)) * MAX_DISPLACEMENT * 2 / shape[-1]
    field = F.interpolate(nodes, size=tuple(shape[-2:]), mode="bicubic", align_corners=True)
    return field.permute(0, 2, 3, 1)
