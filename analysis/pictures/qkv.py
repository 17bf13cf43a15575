"""Queries, keys and values of one image and one layer as they are, and the map that they make: one row a head.

Beyond eight heads, the rows stand in blocks beside each other.

Single dimensions of Q and K mean nothing by themselves (another basis gives the same attention); what can be read is
which tokens are alike, and which pairs give a high score.

Shapes: H heads, N tokens, D width of a head.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..token_layout import TokenLayout
from .figure import FAINT, colour_bar, new_figure, save, show_image

MOST_IN_A_BLOCK = 8


def token_names(layout: TokenLayout) -> list[str]:
    """A short name for each token.

    Example:

    ```python
    >>> token_names(TokenLayout(grid=(2, 2), has_class_token=True, num_register_tokens=1))
    ['class', 'register 0', '0,0', '0,1', '1,0', '1,1']

    ```
    """
    named = ["class"] * layout.has_class_token + ["distillation"] * layout.has_distillation_token
    named += [f"register {index}" for index in range(layout.num_register_tokens)]
    named = named or [f"prefix {index}" for index in range(layout.num_prefix)]
    rows, columns = layout.grid
    return named + [f"{row},{column}" for row in range(rows) for column in range(columns)]


def draw_qkv(
    image: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    weights: torch.Tensor,
    layout: TokenLayout,
    path: str | Path,
    *,
    title: str,
    provenance: str = "",
) -> None:
    """Write a picture of one image's queries, keys, values and attention maps in one layer.

    Args:
        image: (height, width), 0 for paper to 1 for ink, or (3, height, width), colours from 0 to 1.
        query, key, value: (H, N, D).
        weights: (H, N queries, N keys).
        layout: What the tokens are.
        path: The PNG file to write.
        title: Stands above.
        provenance: Written into the file, as its description.
    """
    layout.check(weights.shape[-1])
    num_heads = len(weights)
    names = token_names(layout)
    blocks = -(-num_heads // MOST_IN_A_BLOCK)
    rows = -(-num_heads // blocks)
    figure = new_figure(10.5 * blocks, 2.1 + 2.1 * rows, layout="constrained")
    heading, body = figure.subfigures(2, 1, height_ratios=[1.5, 0.6 + 2.1 * rows])
    _draw_heading(heading, image, layout, title, blocks)
    limits = [_limit(vectors) for vectors in (query, key, value)]
    largest = weights.max().item()
    for block, part in enumerate(body.subfigures(1, blocks, squeeze=False)[0]):
        heads = range(block * rows, min((block + 1) * rows, num_heads))
        some = slice(heads.start, heads.stop)
        axes = part.subplots(rows, 4, squeeze=False)
        for panel in axes[len(heads) :].flat:
            panel.set_axis_off()
        axes = axes[: len(heads)]
        for column, (name, vectors) in enumerate((("queries", query), ("keys", key), ("values", value))):
            _draw_vectors(part, axes[:, column], vectors[some], name, limits[column])
        _draw_maps(part, axes[:, 3], weights[some], names, largest)
        for row, head in enumerate(heads):
            axes[row][0].set_ylabel(f"head {head}", fontsize=10)
            _name_tokens(axes[row][0].yaxis, names)
            _name_tokens(axes[row][3].yaxis, names)
    save(figure, path, provenance)


def _draw_heading(strip: Any, image: torch.Tensor, layout: TokenLayout, title: str, blocks: int) -> None:
    """The image, cut into its patches, and how to read the rest."""
    rows, columns = layout.grid
    height, width = image.shape[-2:]
    picture, text = strip.subplots(1, 2, width_ratios=[1, 7 * blocks - 1])
    aspect = (height / rows) / (width / columns)  # a pixel stays square
    show_image(picture, image.cpu(), extent=(0, columns, rows, 0), aspect=aspect)
    picture.set_xticks([column + 0.5 for column in range(columns)], range(columns))
    picture.set_yticks([row + 0.5 for row in range(rows)], range(rows))
    picture.tick_params(labelsize=6, length=0)
    for row in range(1, rows):
        picture.axhline(row, color="#d95f0e", linewidth=0.6)
    for column in range(1, columns):
        picture.axvline(column, color="#d95f0e", linewidth=0.6)
    text.set_axis_off()
    text.text(0, 0.85, title, fontsize=12, va="top", transform=text.transAxes)
    explanation = (
        "Each row of a panel is a token; a patch is named by its row and column in the image.\n"
        "Attention: the row of a query token shows how much it takes from the value of each key token."
    )
    text.text(0, 0.5, explanation, fontsize=9, va="top", color=FAINT, transform=text.transAxes)


def _limit(vectors: torch.Tensor) -> float:
    """Where the colours end: one scale for all heads, that a few outliers do not stretch."""
    return max(vectors.detach().float().abs().flatten().quantile(0.99).item(), 1e-12)


def _draw_vectors(figure: Any, panels: Sequence[Any], vectors: torch.Tensor, name: str, limit: float) -> None:
    """A column of panels for (H, N, D)."""
    vectors = vectors.detach().float().cpu()
    for panel, of_head in zip(panels, vectors, strict=True):
        shown = panel.imshow(of_head, cmap="RdBu_r", vmin=-limit, vmax=limit, aspect="auto")
        panel.set_yticks([])
        panel.set_xticks([])
    panels[0].set_title(name, fontsize=10)
    panels[-1].set_xticks([0, vectors.shape[-1] - 1])
    panels[-1].tick_params(labelsize=6, length=2)
    panels[-1].set_xlabel("dimension", fontsize=8, labelpad=0)
    _colour_bar(figure, panels, shown, extend="both")


def _draw_maps(figure: Any, panels: Sequence[Any], weights: torch.Tensor, names: Sequence[str], largest: float) -> None:
    """A column of panels for the attention maps (H, N, N)."""
    weights = weights.detach().float().cpu()
    for panel, of_head in zip(panels, weights, strict=True):
        shown = panel.imshow(of_head, cmap="Oranges", vmin=0, vmax=largest, aspect="auto")
        panel.set_xticks([])
    panels[0].set_title("attention, query by key", fontsize=10)
    _name_tokens(panels[-1].xaxis, names)
    panels[-1].tick_params(axis="x", rotation=90)
    _colour_bar(figure, panels, shown, extend="neither")


def _name_tokens(axis: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // 32)  # not more names than can be read
    axis.set_ticks(range(0, len(names), step), names[::step])
    axis.set_tick_params(labelsize=6, length=2)


def _colour_bar(figure: Any, panels: Sequence[Any], shown: Any, extend: str) -> None:
    from matplotlib.ticker import MaxNLocator

    # More numbers would run into each other where they are long, as -0.0025 is.
    few = MaxNLocator(nbins=4, min_n_ticks=3, steps=[1, 2, 5, 10])
    colour_bar(figure, shown, ax=panels, location="bottom", aspect=30, pad=0.01, extend=extend, ticks=few)
