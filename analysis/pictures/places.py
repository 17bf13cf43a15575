"""Where in the image attention goes: one panel a layer."""

import math
import textwrap
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from ..collected import Collected
from .figure import FAINT, INK, add_axes, colour_bar, frame, save, titled_figure

LEAST_WIDTH = 6.5  # inches, that the title needs


def draw_places(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write, for each layer, how much attention each patch draws on average over images and heads.

    With a control, below each layer stands the same for random weights.
    """
    _draw(collected, _received, path, title, provenance, "times the average over tokens")


def _received(collected: Collected) -> torch.Tensor:
    return collected.map("received")


def draw_rollout(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write, for each layer, what the last layer's class token takes from each patch that enters it, by rollout.

    Without a class token: what the last layer's patches take on average. With a control, below each layer stands the
    same for random weights.
    """
    _draw(collected, _taken, path, title, provenance, "times the average over patches")


def _taken(collected: Collected) -> torch.Tensor:
    assert collected.grid is not None, "images of one size"
    rows = collected.map("rollout")
    return rows / rows[:, collected.grid[2] :].mean(dim=1, keepdim=True)


def _draw(
    collected: Collected,
    of_tokens: Callable[[Collected], torch.Tensor],
    path: str | Path,
    title: str,
    provenance: str,
    unit: str,
) -> None:
    """A panel a layer of (L, N), and one of the control where there is one."""
    from matplotlib.colors import LogNorm

    assert collected.grid is not None, "images of one size"
    rows, columns, prefix = collected.grid
    sources = [collected] if collected.control is None else [collected, collected.control]
    maps = torch.stack([of_tokens(source)[:, prefix:].unflatten(1, (rows, columns)) for source in sources])
    in_a_row = min(maps.shape[1], 8 if maps.shape[1] > 12 else 6)
    down = math.ceil(maps.shape[1] / in_a_row) * len(maps)
    width = 1.25
    height = width * min(max(rows / columns, 0.3), 3)
    left, top, gap, right, bottom = 0.3, 0.85, 0.3, 0.95, 0.05
    size = (max(left + in_a_row * (width + 0.12) + right, LEAST_WIDTH), top + down * (height + gap) + bottom)
    figure = titled_figure(*size, title, left)
    reach = max(maps.max().item(), 1 / max(maps.min().item(), 1e-3), 2.0)
    highest = min(reach, 30.0)
    norm = LogNorm(1 / highest, highest)
    for of_layer, which in product(range(maps.shape[1]), range(len(maps))):
        row, column = divmod(of_layer, in_a_row)
        x = left + column * (width + 0.12)
        y = size[1] - top - (row * len(maps) + which) * (height + gap) - height
        panel = add_axes(figure, x, y, width, height)
        shown = panel.imshow(
            maps[which, of_layer].clamp_min(1 / highest),
            cmap="RdBu_r",
            norm=norm,
            interpolation="nearest",
            aspect="auto",
        )
        name = f"layer {collected.layers[of_layer]}"
        panel.set_title(
            name if which == 0 else f"{name}, random", fontsize=8, pad=3, color=INK if which == 0 else FAINT
        )
        panel.set_xticks([])
        panel.set_yticks([])
        frame(panel)
    x = left + in_a_row * (width + 0.12) + 0.05
    tall = min(down * (height + gap) - gap, 3.0)
    bar_axes = add_axes(figure, x, size[1] - top - tall, 0.12, tall)
    bar = colour_bar(figure, shown, cax=bar_axes, extend="both" if reach > highest else "neither")
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / highest <= tick <= highest]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    label = f"{unit}, {maps.min():.2f} to {maps.max():.2f}"
    bar.set_label(textwrap.fill(label, int(20 * tall)), fontsize=8)  # 20 letters an inch
    save(figure, path, provenance)
