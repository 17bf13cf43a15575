"""Where in the image attention goes: one panel a layer."""

import math
from pathlib import Path

import torch

from ..collected import Collected
from .figure import INK, add_axes, colour_bar, frame, save, titled_figure

LEAST_WIDTH = 6.5  # inches, that the title needs


def draw_places(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write, for each layer, how much attention each patch draws on average over images and heads."""
    _draw(collected, collected.map("received"), path, title, provenance, "times the average over tokens")


def draw_rollout(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write, for each layer, what the last layer's class token takes from each patch that enters it, by rollout.

    Without a class token: what the last layer's patches take on average.
    """
    assert collected.grid is not None, "images of one size"
    rows = collected.map("rollout")
    shares = rows / rows[:, collected.grid[2] :].mean(dim=1, keepdim=True)
    _draw(collected, shares, path, title, provenance, "times the average over patches")


def _draw(
    collected: Collected, of_tokens: torch.Tensor, path: str | Path, title: str, provenance: str, unit: str
) -> None:
    """Panels of (L, N)."""
    from matplotlib.colors import LogNorm

    assert collected.grid is not None, "images of one size"
    rows, columns, prefix = collected.grid
    maps = of_tokens[:, prefix:].unflatten(1, (rows, columns))
    in_a_row = min(len(maps), 8 if len(maps) > 12 else 6)
    down = math.ceil(len(maps) / in_a_row)
    width = 1.25
    height = width * min(max(rows / columns, 0.3), 3)
    left, top, gap, right, bottom = 0.3, 0.85, 0.3, 0.95, 0.05
    size = (max(left + in_a_row * (width + 0.12) + right, LEAST_WIDTH), top + down * (height + gap) + bottom)
    figure = titled_figure(*size, title, left)
    reach = max(maps.max().item(), 1 / max(maps.min().item(), 1e-3), 2.0)
    highest = min(reach, 30.0)
    norm = LogNorm(1 / highest, highest)
    for place, layer in enumerate(collected.layers):
        row, column = divmod(place, in_a_row)
        x = left + column * (width + 0.12)
        y = size[1] - top - row * (height + gap) - height
        panel = add_axes(figure, x, y, width, height)
        shown = panel.imshow(maps[place], cmap="RdBu_r", norm=norm, interpolation="nearest", aspect="auto")
        panel.set_title(f"layer {layer}", fontsize=8, pad=3, color=INK)
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
    bar.set_label(unit, fontsize=8)
    save(figure, path, provenance)
