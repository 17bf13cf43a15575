"""Curves over depth: attention distance, and what draws attention."""

from pathlib import Path
from typing import Any

import torch

from ..collected import Collected
from .figure import FAINT, GREY, INK, add_axes, save, ticks, titled_figure

CLASS, REGISTERS, OUTLIERS, HEADS, RANDOM = "#2166ac", "#7b3294", "#d6604d", "#1b7837", "#b8860b"
DOTTED = (0, (1.2, 1.2))


def draw_distance(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write the attention distance of every head against depth, as figure 7 of Dosovitskiy et al. 2021 (2010.11929).

    With a control, its mean over heads is a dotted line, here and in `draw_sinks`.
    """
    distance, error = collected.mean("distance"), collected.half_interval("distance")
    figure, axes = _plot(collected.layers, title, rows=1, right=0.85)
    _dots(axes[0], collected.layers, distance, HEADS, "head, 95 % interval", error)
    axes[0].plot(collected.layers, distance.nanmean(dim=1), color=INK, linewidth=1.5, label="mean of heads")
    top = (distance + error.nan_to_num(0)).nan_to_num(0).max().item()
    if collected.control is not None:
        random = collected.control.mean("distance").nanmean(dim=1)
        axes[0].plot(collected.layers, random, color=RANDOM, linewidth=1.5, linestyle=DOTTED, label="random weights")
        top = max(top, random.nan_to_num(0).max().item())
    if collected.grid is not None:
        rows, columns, _ = collected.grid
        uniform = mean_distance((rows, columns))
        axes[0].axhline(uniform, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="equal weights")
        if "distance_fraction" in collected.statistics:  # not where patches are not square
            _share_of_side(axes[0], max(rows, columns))
        top = max(top, uniform)
    axes[0].set_ylim(0, 1.12 * top or 1)  # of one patch there is no distance
    axes[0].set_ylabel("attention distance, patches", fontsize=9)
    _legend(axes[0])
    save(figure, path, provenance)


def _share_of_side(panel: Any, side: int) -> None:
    """An axis at the right in sides of the image."""
    right = panel.secondary_yaxis("right", functions=(lambda patches: patches / side, lambda part: part * side))
    right.set_ylabel("share of the image's longer side", fontsize=9)
    right.tick_params(labelsize=8)
    right.spines["right"].set_color(GREY)


def draw_sinks(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write what draws attention against depth: class token, registers, outlier patches, and how many of these."""
    kinds = [
        ("on_class_token", CLASS, "class token", -0.22),
        ("on_registers", REGISTERS, "registers", 0.0),
        ("on_outliers", OUTLIERS, "outlier patches", 0.22),
    ]
    shown = [kind for kind in kinds if kind[0] in collected.statistics]
    counted = [name for name in ("outliers", "token_norm_ratio") if name in collected.statistics]
    figure, axes = _plot(collected.layers, title, rows=1 + len(counted))
    for name, colour, label, shift in shown:
        numbers = collected.mean(name)
        _dots(axes[0], [layer + shift for layer in collected.layers], numbers, colour, None)
        axes[0].plot(collected.layers, numbers.mean(dim=1), color=colour, linewidth=1.8, label=label)
        if collected.control is not None:
            random = collected.control.mean(name).mean(dim=1)
            axes[0].plot(collected.layers, random, color=colour, linewidth=1.5, linestyle=DOTTED)
    if collected.control is not None:
        axes[0].plot([], [], color=FAINT, linewidth=1.5, linestyle=DOTTED, label="random weights")
    axes[0].set_ylim(0, max(axes[0].get_ylim()[1], 0.1))  # what is 0 everywhere lies at the bottom of a real scale
    axes[0].set_ylabel("share of attention\n(dot: a head, line: mean)", fontsize=9)
    _legend(axes[0])
    words = {
        "outliers": "outlier patches an\nimage (draw over 5\ntimes the average)",
        "token_norm_ratio": "largest token norm,\ntimes the median",
    }
    for panel, name in zip(axes[1:], counted, strict=True):
        numbers, error = collected.mean(name), collected.half_interval(name).nan_to_num(0)
        low, high = (numbers - error).clamp_min(0), numbers + error
        panel.fill_between(collected.layers, low, high, color=OUTLIERS, alpha=0.2, linewidth=0, label="95 % interval")
        panel.plot(collected.layers, numbers, color=OUTLIERS, linewidth=1.8, marker="o", markersize=3, clip_on=False)
        if collected.control is not None:
            random = collected.control.mean(name)
            panel.plot(collected.layers, random, color=OUTLIERS, linewidth=1.5, linestyle=DOTTED)
            error = torch.maximum(error, random - numbers)  # room for the higher of both
        panel.set_ylabel(words[name], fontsize=8)
        top = 1.05 * (numbers + error).max().item()
        panel.set_ylim(*((0, max(top, 0.5)) if name == "outliers" else (1, max(top, 1.1))))
    if counted:
        axes[1].legend(fontsize=7.5, frameon=False, loc="lower right", bbox_to_anchor=(1.01, 0.93), handlelength=1.6)
    save(figure, path, provenance)


def mean_distance(grid: tuple[int, int]) -> float:
    """Mean distance between two patches of a grid, each with itself included: that of equal weight on all patches.

    Example:

    ```python
    >>> mean_distance((1, 2))
    0.5

    ```
    """
    steps, shares = [], []
    for size in grid:
        step = torch.arange(size, dtype=torch.float64)
        steps.append(step.square())
        shares.append((size - step) * torch.where(step == 0, 1.0, 2.0) / size**2)  # pairs that are so far apart
    return float((shares[0] @ (steps[0][:, None] + steps[1]).sqrt()) @ shares[1])


def _plot(layers: tuple[int, ...], title: str, rows: int, right: float = 0.35) -> tuple[Any, list[Any]]:
    heights = [2.9] + [1.25] * (rows - 1)
    left, top, gap, bottom = 0.85, 0.88, 0.25, 0.55
    width = left + right + min(max(4.4, 0.34 * len(layers)), 11.5)
    size = (width, top + sum(heights) + gap * (rows - 1) + bottom)
    figure = titled_figure(*size, title, left)
    axes = []
    y = size[1] - top
    for height in heights:
        y -= height
        panel = add_axes(figure, left, y, size[0] - left - right, height)
        y -= gap
        panel.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        panel.tick_params(labelsize=8, color=GREY)
        panel.grid(axis="y", color="#f0f0f0", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_color(GREY)
        axes.append(panel)
    places, names = ticks(layers, 24)
    for panel in axes:
        panel.set_xticks([layers[place] for place in places], names if panel is axes[-1] else [])
    axes[-1].set_xlabel("layer", fontsize=9)
    return figure, axes


def _dots(
    panel: Any, places: Any, values: torch.Tensor, colour: str, label: str | None, error: torch.Tensor | None = None
) -> None:
    spread = torch.linspace(-0.2, 0.2, values.shape[1]) if error is not None else torch.zeros(values.shape[1])
    for head in range(values.shape[1]):
        x = [place + spread[head].item() for place in places]
        options = {"color": colour, "alpha": 0.45, "markersize": 4, "markeredgewidth": 0, "linestyle": "none"}
        options["clip_on"] = False  # a dot at 0 is whole
        options["label"] = label if head == 0 else None
        if error is None:
            panel.plot(x, values[:, head], marker="o", **options)
        else:
            panel.errorbar(x, values[:, head], yerr=error[:, head], fmt="o", elinewidth=1, **options)


def _legend(panel: Any) -> None:
    panel.legend(
        fontsize=7.5,
        frameon=False,
        loc="lower left",
        bbox_to_anchor=(-0.01, 0.99),
        ncols=4,
        handlelength=1.6,
        handletextpad=0.6,
        columnspacing=1.0,
    )
