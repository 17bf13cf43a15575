"""Where a patch stands: learned, fixed 2-D sine-cosine, or 2-D rotary positions, for a grid of any size.

All tables are computed from the grid at each forward pass (a few small operations a pass, not a layer), so there is
no buffer to go stale when a model is loaded, moved or given images of another size.

Shapes: B batch, H heads, N tokens, P patches (rows * columns of the grid), D width of a head, C width of the model.
"""

import math

import torch
from torch import nn

Grid = tuple[int, int]  # rows, columns
Rotation = tuple[torch.Tensor, torch.Tensor]  # cosines and sines, (P, D), or (B, 1, P, D) after patch dropout


def interpolate_learned(
    positions: torch.Tensor, trained_grid: Grid, grid: Grid, antialias: bool = False, in_float32: bool = False
) -> torch.Tensor:
    """Learned positions (1, P trained, C) resampled to another grid (1, P, C), bicubic, as DINO and ViT do.

    Args:
        antialias: Low-pass them first where the grid is the smaller one, as timm does.
        in_float32: Resample in float32 whatever the precision of the positions; otherwise in float32 at least.
    """
    # An exported graph is for any size: there the same resampling gives the positions themselves on the trained grid.
    if not torch.compiler.is_exporting() and trained_grid == grid:
        return positions
    image = positions.unflatten(1, trained_grid).permute(0, 3, 1, 2)  # (1, C, rows, columns)
    image = image.to(torch.float32 if in_float32 else torch.promote_types(image.dtype, torch.float32))
    image = nn.functional.interpolate(image, size=grid, mode="bicubic", align_corners=False, antialias=antialias)
    return image.flatten(2).transpose(1, 2).to(positions.dtype)  # (1, P, C)


def sincos_2d(width: int, trained_grid: Grid, grid: Grid, device: torch.device, base: float = 10_000.0) -> torch.Tensor:
    """Fixed positions of "Better plain ViT baselines" (Beyer et al. 2022, arXiv 2205.01580).

    With w_i = base^(-i / (C/4 - 1)), the row (x, y) is [sin x w, cos x w, sin y w, cos y w]. On a grid other than the
    trained one, the coordinates are those of the patch centres measured on the trained grid.

    Returns:
        (1, P, C), float32.

    Example:

    ```python
    >>> sincos_2d(8, (2, 2), (2, 2), torch.device("cpu"))[0, 0]
    tensor([0., 0., 1., 1., 0., 0., 1., 1.])

    ```
    """
    y, x = (
        (torch.arange(size, dtype=torch.float32, device=device) + 0.5) * (trained / size) - 0.5
        for size, trained in zip(grid, trained_grid, strict=True)
    )
    quarter = width // 4
    exponent = torch.arange(quarter, dtype=torch.float32, device=device) / (quarter - 1)
    frequency = base**-exponent
    y, x = torch.meshgrid(y, x, indexing="ij")
    along_x, along_y = x.flatten()[:, None] * frequency, y.flatten()[:, None] * frequency  # (P, C / 4)
    return torch.cat([along_x.sin(), along_x.cos(), along_y.sin(), along_y.cos()], dim=1)[None]


def rotary_2d(
    head_dim: int, grid: Grid, device: torch.device, base: float, dtype: torch.dtype = torch.float32
) -> Rotation:
    """Angles of 2-D rotary positions, as in DINOv3 (Simeoni et al. 2025, arXiv 2508.10104).

    The centres of the patches have coordinates in [-1, 1] along both axes, whatever the size of the grid. With
    w_i = base^(-4 i / D), half of a head's pairs turn by 2 pi y w_i and the other half by 2 pi x w_i.

    Args:
        dtype: Of the angles. Coordinates and frequencies are float32 numbers in every precision, as in DINOv3.

    Returns:
        Cosines and sines, each (P, D), of that data type.

    Example:

    ```python
    >>> cosine, sine = rotary_2d(8, (1, 1), torch.device("cpu"), base=100.0)  # one patch, in the centre
    >>> cosine.min().item(), sine.abs().max().item()
    (1.0, 0.0)

    ```
    """
    y, x = (2 * (torch.arange(size, dtype=torch.float32, device=device) + 0.5) / size - 1 for size in grid)
    centres = torch.stack(torch.meshgrid(y, x, indexing="ij"), dim=-1).flatten(0, 1)  # (P, 2)
    # A quotient, not a negative power: rounded as in DINOv3, whose outputs are then the same to the bit.
    frequency = 1 / base ** (torch.arange(head_dim // 4, dtype=torch.float32, device=device) * 4 / head_dim)
    angles = (2 * math.pi * centres[:, :, None] * frequency.to(dtype)).flatten(1).tile(2)  # (P, 2, D / 4) -> (P, D)
    return angles.cos(), angles.sin()


def rotate_patches(tensor: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Turn queries or keys (B, H, N, D) by the positions of the patches; the tokens before them stay.

    The pairs are (d, d + D/2). A rotation keeps lengths, and scores depend on differences of positions alone.
    """
    cosine, sine = rotation
    prefix, patches = tensor.split([tensor.shape[-2] - cosine.shape[-2], cosine.shape[-2]], dim=-2)
    first, second = patches.chunk(2, dim=-1)
    turned = patches * cosine + torch.cat([-second, first], dim=-1) * sine
    return torch.cat([prefix, turned.to(tensor.dtype)], dim=-2)
