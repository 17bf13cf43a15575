"""Operations on batches of images in [0, 1], each image with a strength of its own: plain torch, on any device.

Steps are done in place where they can be: fresh memory for a batch costs more than the arithmetic.
`benchmarks/augmentation.py` times each beside kornia's, which gives the same pixels.

Shapes: B images (B, 3, height, width); strengths (B,).
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch.nn import functional as F

Interpolation = Literal["nearest", "bilinear", "bicubic"]
Direction = Literal["rotate", "shear_x", "shear_y", "shift_x", "shift_y"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as PIL's conversion to grey


def cut_off(numbers: torch.Tensor) -> torch.Tensor:
    """Magnitudes as whole numbers."""
    return (numbers + 1e-4).floor()  # 0.7 * 10 is less than 7 in float32


def grey(images: torch.Tensor) -> torch.Tensor:
    """Luminance, (B, 1, height, width).

    Example:

    ```python
    >>> grey(torch.ones(1, 3, 2, 2)).flatten()
    tensor([1., 1., 1., 1.])

    ```
    """
    red, green, blue = images.split(1, dim=1)
    return (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])


def blend(
    one: torch.Tensor, other: torch.Tensor | float, share: torch.Tensor, *, inplace: bool = False
) -> torch.Tensor:
    """`share` of `one` and the rest of `other`, kept in [0, 1]; a share above 1 goes beyond `one`.

    Args:
        inplace: Into `one`.
    """
    share = share.view(-1, 1, 1, 1)
    mixed = one.mul_(share) if inplace else one * share
    return mixed.add_((1 - share) * other).clamp_(0, 1)


def brightness(images: torch.Tensor, factor: torch.Tensor, *, inplace: bool = False) -> torch.Tensor:
    """0 is black, 1 leaves the image as it is."""
    return blend(images, 0.0, factor, inplace=inplace)


def contrast(images: torch.Tensor, factor: torch.Tensor, *, inplace: bool = False) -> torch.Tensor:
    """0 is the mean grey, 1 leaves the image as it is."""
    means = images.mean((2, 3), keepdim=True)  # the grey of the mean colour is the mean grey
    return blend(images, grey(means), factor, inplace=inplace)


def saturation(images: torch.Tensor, factor: torch.Tensor, *, inplace: bool = False) -> torch.Tensor:
    """0 is grey, 1 leaves the image as it is."""
    return blend(images, grey(images), factor, inplace=inplace)


def sharpness(images: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """0 is smoothed, 1 leaves the image as it is; the border stays."""
    flat = images.flatten(0, 1).unsqueeze(0)  # every channel a group of one image: a fifth of the time of B images
    kernel = images.new_tensor([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]).div(13).expand(flat.shape[1], 1, 3, 3)
    smooth = images.clone()
    smooth[..., 1:-1, 1:-1] = F.conv2d(flat, kernel, groups=len(kernel)).unflatten(1, images.shape[:2])[0]
    return blend(images, smooth, factor)


def solarise(images: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """Invert what is not darker than the threshold."""
    return torch.where(images >= threshold.view(-1, 1, 1, 1), 1 - images, images)


def solarise_add(images: torch.Tensor, addition: torch.Tensor) -> torch.Tensor:
    """Add to what is darker than 128 of 255, up to white."""
    return torch.where(images < 128 / 255, (images + addition.view(-1, 1, 1, 1)).clamp_(max=1), images)


def invert(images: torch.Tensor) -> torch.Tensor:
    """The negative."""
    return 1 - images


def posterise(images: torch.Tensor, bits: torch.Tensor) -> torch.Tensor:
    """Keep that many bits of eight of each colour."""
    step = (2 ** (8 - bits.round())).view(-1, 1, 1, 1)
    return (images * 255).round_().div_(step).floor_().mul_(step).div_(255)


def auto_contrast(images: torch.Tensor) -> torch.Tensor:
    """Stretch each channel to [0, 1]; a channel of one value stays."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = high <= low
    return (images - low.masked_fill(flat, 0)).div_((high - low).masked_fill(flat, 1))


def equalise(images: torch.Tensor) -> torch.Tensor:
    """Spread the 256 levels of each channel so that each has as many pixels, with Pillow's whole-number rounding."""
    levels = (images * 255).round_().long().flatten(2)  # (B, 3, pixels)
    counts = torch.zeros(*levels.shape[:2], 256, device=images.device, dtype=torch.int64)
    counts.scatter_add_(2, levels, counts.new_ones(1).expand_as(levels))
    below = counts.cumsum(2) - counts
    highest = levels.amax(2, keepdim=True)
    step = (levels.shape[2] - counts.gather(2, highest)) // 255
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return (table / 255).to(images.dtype).gather(2, levels).view_as(images)


def blur(images: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of sigma pixels, up to 2; the border is reflected."""
    reach = min(6, images.shape[-1] - 1, images.shape[-2] - 1)
    offsets = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = (-0.5 * (offsets / sigma.view(-1, 1)) ** 2).exp()
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)  # (3 B, taps)
    flat = F.pad(images.flatten(0, 1).unsqueeze(0), (reach,) * 4, mode="reflect")
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel)).view_as(images)


def cut_out(images: torch.Tensor, reach: torch.Tensor, centre: torch.Tensor, fill: float = 0.0) -> torch.Tensor:
    """Fill a square of 2 * reach pixels about a pixel (DeVries and Taylor 2017, arXiv 1708.04552), cut at the border.

    Args:
        centre: (B, 2), shares of height and width in [0, 1).
    """

    def within(length: int, share: torch.Tensor) -> torch.Tensor:
        place = torch.arange(length, device=images.device)
        middle, half = (share * length).floor().unsqueeze(1), reach.unsqueeze(1)
        return (place >= middle - half) & (place < middle + half)  # (B, length)

    rows, columns = (within(*side) for side in zip(images.shape[-2:], centre.unbind(1), strict=True))
    return images.masked_fill(rows[:, None, :, None] & columns[:, None, None, :], fill)


def affine(
    images: torch.Tensor,
    degrees: torch.Tensor,
    shear: torch.Tensor,
    shift: torch.Tensor,
    fill: float | Sequence[float] = 0.5,
    interpolation: Interpolation = "bilinear",
) -> torch.Tensor:
    """Rotate, shear (B, 2) and shift (B, 2: shares of width and height) about the centre; outside is `fill`, a number
    or one for each channel."""
    height, width = images.shape[-2:]
    angle = degrees * (math.pi / 180)
    cosine, sine = angle.cos(), angle.sin()
    aspect = height / width  # coordinates span [-1, 1] along both sides: a rotation must know which is longer
    rotation = torch.stack([cosine, -sine * aspect, sine / aspect, cosine], dim=1).view(-1, 2, 2)
    one = torch.ones_like(angle)
    sheared = torch.stack([one, shear[:, 0] * aspect, shear[:, 1] / aspect, one], dim=1).view(-1, 2, 2)
    places = _places(rotation @ sheared, 2 * shift, height, width)
    outside = images.new_tensor(fill).view(-1, 1, 1)
    moved = F.grid_sample(images - outside, places, interpolation, "zeros", align_corners=False).add_(outside)
    return moved.clamp_(0, 1) if interpolation == "bicubic" else moved  # which overshoots at edges


def displace(
    images: torch.Tensor,
    amount: torch.Tensor,
    direction: Direction,
    fill: float | Sequence[float] = 0.5,
    interpolation: Interpolation = "bilinear",
    shear_from: Literal["centre", "corner"] = "centre",
) -> torch.Tensor:
    """Rotate by degrees, shear, or shift by shares of the side: one of them, by an amount for each image.

    Args:
        shear_from: What a shear leaves in its place: the centre, or the upper left corner.
    """
    zero = torch.zeros_like(amount)
    nothing, along = torch.stack([zero, zero], 1), torch.stack([amount, zero], 1)
    if direction.endswith("_y"):
        along = along.flip(1)
    if direction == "rotate":
        return affine(images, amount, nothing, nothing, fill, interpolation)
    if direction.startswith("shift"):
        return affine(images, zero, nothing, along, fill, interpolation)
    height, width = images.shape[-2:]
    half = along * along.new_tensor([height / width, width / height]) / 2  # the centre moves by half of the other side
    return affine(images, zero, along, half if shear_from == "corner" else nothing, fill, interpolation)


def _places(maps: torch.Tensor, shift: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Where each pixel's centre comes from: (B, 2, 2), (B, 2) -> (B, height, width, 2).

    As `F.affine_grid`, in a quarter of its time: a number for each column and one for each row, added.
    """

    def centres(count: int) -> torch.Tensor:
        return torch.linspace(1 / count - 1, 1 - 1 / count, count, device=maps.device, dtype=maps.dtype).unsqueeze(1)

    columns = maps[:, None, :, 0] * centres(width)  # (B, width, 2)
    rows = maps[:, None, :, 1] * centres(height) + shift[:, None]  # (B, height, 2)
    return rows[:, :, None] + columns[:, None]
