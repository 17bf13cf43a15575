"""Where each head looks, drawn over the image: one row an image, one column a head.

Shapes: B images, H heads, N tokens.
"""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from ..token_layout import TokenLayout
from .figure import FAINT, INK, add_axes, colour_bar, frame, new_figure, save, show_image


def looked_at(weights: torch.Tensor, layout: TokenLayout) -> torch.Tensor:
    """What the class token looks at; without one, what the patches look at on average: (..., N, N) -> (..., N).

    Example:

    ```python
    >>> weights = torch.tensor([[0.2, 0.8], [0.4, 0.6]])
    >>> looked_at(weights, TokenLayout(grid=(1, 1), has_class_token=True))
    tensor([0.2000, 0.8000])

    ```
    """
    layout.check(weights.shape[-1])
    if layout.class_token is not None:
        return weights[..., layout.class_token, :]
    return weights[..., layout.patches, :].mean(dim=-2)


def draw_attention(
    images: torch.Tensor,
    weights: torch.Tensor,
    layout: TokenLayout,
    path: str | Path,
    *,
    title: str,
    row_names: Sequence[str],
    provenance: str = "",
) -> None:
    """Write a picture of one layer's attention.

    Each head's weights on the patches are shown as colour, with the image's ink on top, or fainter what is dark in an
    image of colours. All panels share one scale.
    Under a panel stands the share of the weight that goes to tokens before the patches, which have no place in it.
    The few weights beyond the end of the scale have its darkest colour.

    Args:
        images: (B, height, width), 0 for paper to 1 for ink, or (B, 3, height, width), colours from 0 to 1.
        weights: (B, H, N, N), the attention maps of one layer.
        layout: What the tokens are.
        path: The PNG file to write.
        title: Stands above.
        provenance: Written into the file, as its description.
        row_names: One for each image.

    Raises:
        ValueError: the numbers of images, maps and names differ.
    """
    if not len(images) == len(weights) == len(row_names):
        raise ValueError(
            f"there are {len(images)} images, {len(weights)} maps and {len(row_names)} names; pass one of each an image"
        )
    shares = looked_at(weights, layout).detach().float().cpu()  # (B, H, N)
    num_images, num_heads = shares.shape[:2]
    figure, axes, colour_axes = _panels(num_images, num_heads + 1, title)
    scale = _scale(shares[..., layout.patches], layout)
    for row, (image, of_heads, name) in enumerate(zip(images.cpu(), shares, row_names, strict=True)):
        _draw_image(axes[row][0], image)
        axes[row][0].set_ylabel(name, rotation=0, ha="right", va="center", labelpad=8)
        for head, share in enumerate(of_heads):
            panel = axes[row][head + 1]
            shown = _draw_weights(panel, image, share[layout.patches].unflatten(0, layout.grid), scale)
            if layout.num_prefix:
                panel.set_xlabel(_prefix_share(share, layout), fontsize=7, labelpad=2, color=FAINT)
    for column, name in enumerate(["input", *(f"head {head}" for head in range(num_heads))]):
        axes[0][column].set_title(name, fontsize=9)
    bar = colour_bar(figure, shown, cax=colour_axes, extend="max")
    words = f"weight of a patch ({1 / layout.num_tokens:.2g}: equal weight on all {layout.num_tokens} tokens)"
    if num_images == 1:  # the bar is as low as a row
        words = fill(words, 32)
    bar.set_label(words, fontsize=8)
    save(figure, path, provenance)


def _scale(shares: torch.Tensor, layout: TokenLayout) -> float:
    """The weight with the darkest colour: only one in fifty is above it, or else a few would leave the rest pale."""
    return max(shares.flatten().quantile(0.98).item(), 2 / layout.num_tokens)


def _prefix_share(share: torch.Tensor, layout: TokenLayout) -> str:
    only_class = layout.has_class_token and layout.num_prefix == 1
    return f"{'class token' if only_class else 'other tokens'} {share[: layout.num_prefix].sum():.2f}"


def _panels(rows: int, columns: int, title: str) -> tuple[Any, list[list[Any]], Any]:
    """A figure with square panels of one inch, and a place for the colour bar at its right."""
    left, right, top, bottom, step_x, step_y = 0.55, 0.95, 0.75, 0.3, 1.1, 1.25  # inches
    width, height = left + columns * step_x + right, top + rows * step_y + bottom
    figure = new_figure(width, height)
    figure.suptitle(title, x=left / width, y=1 - 0.25 / height, ha="left", fontsize=10)
    axes = []
    for row in range(rows):
        y = bottom + (rows - 1 - row) * step_y + (step_y - 1)
        axes.append([add_axes(figure, left + column * step_x, y, 1, 1) for column in range(columns)])
    for panel in (panel for row in axes for panel in row):
        panel.set_xticks([])
        panel.set_yticks([])
        frame(panel)
    tall = rows * step_y - (step_y - 1)
    colour_axes = add_axes(figure, left + columns * step_x + 0.1, bottom + step_y - 1, 0.12, tall)
    return figure, axes, colour_axes


def _draw_image(panel: Any, image: torch.Tensor) -> None:
    height, width = image.shape[-2:]
    show_image(panel, image, extent=(0, width, height, 0))


def _draw_weights(panel: Any, image: torch.Tensor, weights: torch.Tensor, scale: float) -> Any:
    """Weights (rows, columns) as colour, the image's ink over them; what the colour bar needs."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap, to_rgb

    colours = ListedColormap(colormaps["Oranges"](torch.linspace(0, 0.75, 256).numpy()))  # ink stays visible on it
    height, width = image.shape[-2:]
    extent = (0, width, height, 0)
    shown = panel.imshow(weights, cmap=colours, vmin=0, vmax=scale, extent=extent, interpolation="nearest")
    ink = torch.zeros(height, width, 4)
    ink[..., :3] = torch.tensor(to_rgb(INK))
    ink[..., 3] = image * 0.75 if image.ndim == 2 else (1 - image.mean(dim=0)).clamp(0, 1) * 0.5
    panel.imshow(ink, extent=extent, interpolation="nearest")
    return shown
