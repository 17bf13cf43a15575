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
from .figure import FAINT, add_axes, colour_bar, new_figure, save, show_image, ticks

MOST_IN_A_BLOCK = 8
BLOCK, ROW, HEADING = 10.5, 2.1, 1.8  # inches: the width of a block of heads, the height of one, and of what is above


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
    num_heads, names = len(weights), token_names(layout)
    blocks = -(-num_heads // MOST_IN_A_BLOCK)
    rows = -(-num_heads // blocks)
    written = 0.045 * max(map(len, names)) + 0.08  # inches that the tokens' names take
    figure = new_figure(BLOCK * blocks, HEADING + ROW * rows + written + 0.5)
    _draw_heading(figure, image, layout, title)
    limits = [_limit(vectors) for vectors in (query, key, value)]
    largest = weights.max().item()
    for block in range(blocks):
        heads = range(block * rows, min((block + 1) * rows, num_heads))
        some = slice(heads.start, heads.stop)
        columns = _columns(BLOCK * block, written)
        bottom = written + 0.5 + ROW * (rows - len(heads))
        panels = [
            [add_axes(figure, left, bottom + ROW * below, width, ROW - 0.1) for left, width in columns]
            for below in reversed(range(len(heads)))
        ]
        bars = [add_axes(figure, left, bottom - written - 0.2, width, 0.07) for left, width in columns]
        of_column = list(zip(*panels, strict=True))
        for column, (name, vectors) in enumerate((("queries", query), ("keys", key), ("values", value))):
            _draw_vectors(bars[column], of_column[column], vectors[some], name, limits[column])
        _draw_maps(bars[3], of_column[3], weights[some], names, largest)
        for head, (queries, _, _, maps) in zip(heads, panels, strict=True):
            queries.set_ylabel(f"head {head}", fontsize=10)
            queries.yaxis.set_label_coords((BLOCK * block + 0.2 - columns[0][0]) / columns[0][1], 0.5)
            _name_tokens(queries.yaxis, names)
            _name_tokens(maps.yaxis, names)
    save(figure, path, provenance)


def _columns(left: float, written: float) -> list[tuple[float, float]]:
    """Where the columns of a block begin, and how wide they are: before the first and the last stand the names."""
    width = (BLOCK - 2 * written - 0.74) / 4
    first = left + 0.3 + written
    return [(place, width) for place in (*(first + n * (width + 0.12) for n in range(3)), left + BLOCK - 0.12 - width)]


def _draw_heading(figure: Any, image: torch.Tensor, layout: TokenLayout, title: str) -> None:
    """The image, cut into its patches, and how to read the rest."""
    rows, columns = layout.grid
    height, width = image.shape[-2:]
    scale = min(1.3 / height, 2.6 / width)  # inches a pixel
    top = figure.get_figheight() - 0.1
    picture = add_axes(figure, 0.3, top - scale * height, scale * width, scale * height)
    show_image(picture, image.cpu(), extent=(0, columns, rows, 0), aspect="auto")
    for axis, count in ((picture.xaxis, columns), (picture.yaxis, rows)):
        places, labels = ticks(tuple(range(count)), 10)
        axis.set_ticks([place + 0.5 for place in places], labels)
    picture.tick_params(labelsize=6, length=0)
    for row in range(1, rows):
        picture.axhline(row, color="#d95f0e", linewidth=0.6)
    for column in range(1, columns):
        picture.axvline(column, color="#d95f0e", linewidth=0.6)
    left = (0.6 + scale * width) / figure.get_figwidth()
    explanation = (
        "Each row of a panel is a token; a patch is named by its row and column in the image.\n"
        "Attention: the row of a query token shows how much it takes from the value of each key token."
    )
    figure.text(left, (top - 0.2) / figure.get_figheight(), title, fontsize=12, va="top")
    figure.text(left, (top - 0.65) / figure.get_figheight(), explanation, fontsize=9, va="top", color=FAINT)


def _limit(vectors: torch.Tensor) -> float:
    """Where the colours end: one scale for all heads, that a few outliers do not stretch."""
    return max(vectors.detach().float().abs().flatten().quantile(0.99).item(), 1e-12)


def _draw_vectors(bar: Any, panels: Sequence[Any], vectors: torch.Tensor, name: str, limit: float) -> None:
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
    _colour_bar(bar, shown, extend="both")


def _draw_maps(bar: Any, panels: Sequence[Any], weights: torch.Tensor, names: Sequence[str], largest: float) -> None:
    """A column of panels for the attention maps (H, N, N)."""
    weights = weights.detach().float().cpu()
    for panel, of_head in zip(panels, weights, strict=True):
        shown = panel.imshow(of_head, cmap="Oranges", vmin=0, vmax=largest, aspect="auto")
        panel.set_xticks([])
    panels[0].set_title("attention, query by key", fontsize=10)
    _name_tokens(panels[-1].xaxis, names)
    panels[-1].tick_params(axis="x", rotation=90)
    _colour_bar(bar, shown, extend="neither")


def _name_tokens(axis: Any, names: Sequence[str]) -> None:
    step = -(-len(names) // 20)  # not more names than can be read
    axis.set_ticks(range(0, len(names), step), names[::step])
    axis.set_tick_params(labelsize=6, length=2)


def _colour_bar(bar: Any, shown: Any, extend: str) -> None:
    from matplotlib.ticker import MaxNLocator

    # More numbers would run into each other where they are long, as -0.0025 is.
    few = MaxNLocator(nbins=4, min_n_ticks=3, steps=[1, 2, 5, 10])
    colour_bar(bar.figure, shown, cax=bar, orientation="horizontal", extend=extend, ticks=few)
