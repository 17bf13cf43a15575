"""Pictures of a whole model: layers by heads, attention distance and sinks against depth, where attention is drawn.

Shapes: L layers, H heads, N tokens, P patches.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from .collected import Collected
from .weights import WeightStatistics

INK, FAINT, GREY = "#1a1a1a", "#8a8a8a", "#e4e4e4"
CLASS, REGISTERS, OUTLIERS, HEADS, RANDOM = "#2166ac", "#7b3294", "#d6604d", "#1b7837", "#b8860b"
DOTTED = (0, (1.2, 1.2))
DOTS_PER_INCH = 150
MAX_PANELS_IN_A_ROW = 5


@dataclass(frozen=True)
class Panel:
    """How a statistic is shown: its title, what its colours mean, and where its scale begins and ends.

    A scale by roots or logarithms is for statistics of which a few heads have most.
    """

    statistic: str
    title: str
    unit: str
    low: float | None = 0.0
    high: float | None = None
    diverging: bool = False
    scale: Literal["linear", "root", "log"] = "linear"


HEAD_PANELS = (
    Panel("entropy", "Entropy", "nats"),
    Panel("distance", "Attention distance", "patches"),
    Panel("on_neighbours", "On the 8 neighbours", "share of weight"),
    Panel("on_self", "On itself", "share of weight"),
    Panel("on_class_token", "On the class token", "share of weight"),
    Panel("on_registers", "On registers", "share of weight"),
    Panel("on_outliers", "On outlier patches", "share of weight", scale="root"),
    Panel("largest_received", "Most drawn by a patch", "times the average", None, scale="log"),
    Panel("head_similarity", "Likeness to other heads", "mean cosine"),
    Panel("output_share", "Share of the output", "1 / heads if all are equal", None, None),
)
WEIGHT_PANELS = (
    Panel("qk_effective_rank_with_gain", "Effective rank, QK", "of at most D"),
    Panel("qk_symmetric_share_with_gain", "Symmetric share, QK", "1/2 if random", 0.0, 1.0, True),
    Panel("query_bias_share", "By the query's bias", "share of variance", 0.0, 1.0),
    Panel("qk_norm_with_gain", "Norm, QK", "Frobenius", None, scale="log"),
    Panel("ov_effective_rank_with_gain", "Effective rank, OV", "of at most D"),
    Panel("ov_symmetric_share_with_gain", "Symmetric share, OV", "1/2 if random", 0.0, 1.0, True),
    Panel("value_bias_share", "By the value's bias", "share of mean square"),
    Panel("ov_norm_with_gain", "Norm, OV", "Frobenius", None, scale="log"),
)


def draw_head_maps(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write heat maps, layers by heads, of the main statistics' means over images; below each, its control's mean.

    Args:
        collected: From `collect`.
        path: The PNG file to write.
        title: Stands above; what follows a colon comes below it, smaller.
        provenance: Written into the file, as its description.
    """
    panels = [panel for panel in HEAD_PANELS if panel.statistic in collected.statistics]
    values = {panel.statistic: collected.mean(panel.statistic) for panel in panels}
    panels = [panel for panel in panels if not values[panel.statistic].isnan().all()] or panels
    notes = {}
    if collected.control is not None:
        means = {panel.statistic: collected.control.mean(panel.statistic).nanmean() for panel in panels}
        notes = {name: f"random weights: {mean:.3g}" for name, mean in means.items()}
    _draw_maps(panels, values, collected.layers, path, title, provenance, notes)


def draw_weight_maps(statistics: WeightStatistics, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write heat maps, layers by heads, of what the weights alone say; below each, what random weights give."""
    values = {panel.statistic: statistics.numbers[panel.statistic] for panel in WEIGHT_PANELS}
    notes = {}
    if statistics.control is not None:
        for panel in WEIGHT_PANELS:
            control = statistics.control.numbers.get(panel.statistic.removesuffix("_with_gain"))
            if control is not None and "norm" not in panel.statistic:  # its norms are those of the matrices as stored
                notes[panel.statistic] = f"random weights: {control.mean():.3g}"
    _draw_maps(list(WEIGHT_PANELS), values, statistics.layers, path, title, provenance, notes)


def draw_distance(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write the attention distance of every head against depth, as figure 7 of Dosovitskiy et al. 2021 (2010.11929).

    With a control, its mean over heads is a dotted line, here and in `draw_sinks`.
    """
    distance, error = collected.mean("distance"), collected.half_interval("distance")
    figure, axes = _plot(collected.layers, title, rows=1, right=0.85)
    _dots(axes[0], collected.layers, distance, HEADS, "head, 95 % interval", error)
    axes[0].plot(collected.layers, distance.nanmean(dim=1), color=INK, linewidth=1.5, label="mean of heads")
    top = distance.nan_to_num(0).max().item()
    if collected.control is not None:
        random = collected.control.mean("distance").nanmean(dim=1)
        axes[0].plot(collected.layers, random, color=RANDOM, linewidth=1.5, linestyle=DOTTED, label="random weights")
        top = max(top, random.nan_to_num(0).max().item())
    if collected.grid is not None:
        rows, columns, _ = collected.grid
        uniform = mean_distance((rows, columns))
        axes[0].axhline(uniform, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label="equal weights")
        side = max(rows, columns)
        right = axes[0].secondary_yaxis("right", functions=(lambda patches: patches / side, lambda part: part * side))
        right.set_ylabel("share of the image's longer side", fontsize=9)
        right.tick_params(labelsize=8)
        right.spines["right"].set_color(GREY)
        top = max(top, uniform)
    axes[0].set_ylim(0, 1.12 * top)
    axes[0].set_ylabel("attention distance, patches", fontsize=9)
    _legend(axes[0])
    _finish(figure, path, provenance)


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
    axes[0].set_ylim(0, None)
    axes[0].set_ylabel("share of attention\n(dot: a head, line: mean)", fontsize=9)
    _legend(axes[0])
    words = {"outliers": "outlier patches\nan image", "token_norm_ratio": "largest token norm,\ntimes the median"}
    for panel, name in zip(axes[1:], counted, strict=True):
        numbers, error = collected.mean(name), collected.half_interval(name).nan_to_num(0)
        low, high = (numbers - error).clamp_min(0), numbers + error
        panel.fill_between(collected.layers, low, high, color=OUTLIERS, alpha=0.2, linewidth=0, label="95 % interval")
        panel.plot(collected.layers, numbers, color=OUTLIERS, linewidth=1.8, marker="o", markersize=3)
        if collected.control is not None:
            random = collected.control.mean(name)
            panel.plot(collected.layers, random, color=OUTLIERS, linewidth=1.5, linestyle=DOTTED)
            error = torch.maximum(error, random - numbers)  # room for the higher of both
        panel.set_ylabel(words[name], fontsize=8)
        top = 1.05 * (numbers + error).max().item()
        panel.set_ylim(*((0, max(top, 0.5)) if name == "outliers" else (1, max(top, 1.1))))
    _finish(figure, path, provenance)


def draw_places(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write, for each layer, how much attention each patch draws on average over images and heads."""
    from matplotlib.colors import LogNorm

    assert collected.grid is not None, "images of one size"
    rows, columns, prefix = collected.grid
    received = collected.map("received")[:, prefix:].unflatten(1, (rows, columns))
    in_a_row = min(len(received), 8 if len(received) > 12 else 6)
    down = math.ceil(len(received) / in_a_row)
    width = 1.25
    height = width * min(max(rows / columns, 0.3), 3)
    left, top, gap, right, bottom = 0.3, 0.85, 0.3, 0.95, 0.05
    size = (left + in_a_row * (width + 0.12) + right, top + down * (height + gap) + bottom)
    figure = _figure(size, title, left)
    reach = max(received.max().item(), 1 / max(received.min().item(), 1e-3), 2.0)
    highest = min(reach, 30)
    norm = LogNorm(1 / highest, highest)
    for place, layer in enumerate(collected.layers):
        row, column = divmod(place, in_a_row)
        x = left + column * (width + 0.12)
        y = size[1] - top - row * (height + gap) - height
        panel = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
        shown = panel.imshow(received[place], cmap="RdBu_r", norm=norm, interpolation="nearest", aspect="auto")
        panel.set_title(f"layer {layer}", fontsize=8, pad=3, color=INK)
        panel.set_xticks([])
        panel.set_yticks([])
        _frame(panel)
    x = left + in_a_row * (width + 0.12) + 0.05
    tall = min(down * (height + gap) - gap, 3.0)
    bar_axes = figure.add_axes((x / size[0], (size[1] - top - tall) / size[1], 0.12 / size[0], tall / size[1]))
    bar = figure.colorbar(shown, cax=bar_axes, extend="both")
    ticks = [tick for tick in (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if 1 / highest <= tick <= highest]
    bar.set_ticks(ticks, labels=[f"{tick:g}" for tick in ticks])
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.set_label("times the average token's", fontsize=8)
    bar.outline.set_visible(False)
    _finish(figure, path, provenance)


def draw_all(collected: Collected, folder: str | Path, *, model: str, provenance: str = "") -> list[Path]:
    """Write the pictures that can be drawn from what was collected, and give their paths."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    over = f"{model}, mean over {collected.images:,} images"
    has, written = set(collected.statistics), []

    def draw(function: Any, name: str, title: str) -> None:
        function(collected, folder / name, title=title, provenance=provenance)
        written.append(folder / name)

    if has & {panel.statistic for panel in HEAD_PANELS}:
        draw(draw_head_maps, "heads.png", f"Every head: {over}")
    if "distance" in has:
        draw(draw_distance, "distance.png", f"Attention distance against depth: {over}")
    if has & {"on_class_token", "on_registers", "on_outliers"}:
        draw(draw_sinks, "sinks.png", f"What draws attention, against depth: {over}")
    if collected.grid is not None and "on_outliers" in has:
        draw(draw_places, "places.png", f"Attention that each patch draws: {over}")
    return written


# ---- heat maps


def _draw_maps(
    panels: list[Panel],
    values: dict[str, torch.Tensor],
    layers: tuple[int, ...],
    path: str | Path,
    title: str,
    provenance: str,
    notes: dict[str, str] | None = None,
) -> None:
    num_layers, num_heads = next(iter(values.values())).shape
    width, height = max(1.6, 0.16 * num_heads), min(max(1.2, 0.2 * num_layers), 5.2)
    across = min(MAX_PANELS_IN_A_ROW, len(panels))
    across = math.ceil(len(panels) / math.ceil(len(panels) / across))
    down = math.ceil(len(panels) / across)
    left, top, right, step_x, step_y = 0.55, 0.7, 0.2, width + 0.92, height + 0.85
    size = (left + across * step_x - 0.2 + right, top + down * step_y)
    figure = _figure(size, title, left)
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        x, y = left + column * step_x, size[1] - top - row * step_y - height - 0.25
        axes = figure.add_axes((x / size[0], y / size[1], width / size[0], height / size[1]))
        bar_axes = figure.add_axes(((x + width + 0.07) / size[0], y / size[1], 0.09 / size[0], height / size[1]))
        _heat_map(figure, axes, bar_axes, panel, values[panel.statistic], layers)
        if column == 0:
            axes.set_ylabel("layer", fontsize=8)
        below = "head" if not notes or panel.statistic not in notes else f"head · {notes[panel.statistic]}"
        axes.set_xlabel(below, fontsize=7.5, labelpad=2)
    _finish(figure, path, provenance)


def _heat_map(
    figure: Any, axes: Any, bar_axes: Any, panel: Panel, values: torch.Tensor, layers: tuple[int, ...]
) -> None:
    from matplotlib import colormaps

    colours = colormaps["RdBu_r" if panel.diverging else "YlGnBu"].with_extremes(bad=GREY)
    shown = axes.imshow(
        values.masked_fill(~values.isfinite(), torch.nan),
        cmap=colours,
        norm=_norm(panel, values[values.isfinite()]),
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_title(f"{panel.title}\n", fontsize=9, loc="left", pad=1, color=INK)
    axes.text(0, 1.01, panel.unit, transform=axes.transAxes, fontsize=7, color=FAINT, va="bottom")
    axes.set_xticks(*_ticks(tuple(range(values.shape[1])), 8))
    axes.set_yticks(*_ticks(layers, 14))
    axes.tick_params(labelsize=7, length=0, pad=2)
    axes.set_xticks([edge - 0.5 for edge in range(1, values.shape[1])], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    _frame(axes)
    bar = figure.colorbar(shown, cax=bar_axes)
    bar.ax.tick_params(labelsize=6.5, length=2, pad=1)
    _set_ticks(bar, panel)
    bar.outline.set_visible(False)


def _norm(panel: Panel, known: torch.Tensor) -> Any:
    """From values to places on the colour scale."""
    from matplotlib.colors import LogNorm, Normalize, PowerNorm

    if not len(known):
        return Normalize(0, 1)
    low = known.min().item() if panel.low is None else panel.low
    high = known.max().item() if panel.high is None else panel.high
    if panel.scale == "log" and low > 0:
        return LogNorm(low, max(high, 1.01 * low))
    high = high if high > low else low + 1
    return PowerNorm(0.5, low, high) if panel.scale == "root" else Normalize(low, high)


def _set_ticks(bar: Any, panel: Panel) -> None:
    """Three to five numbers beside the colour bar."""
    from matplotlib.ticker import MaxNLocator

    low, high = bar.norm.vmin, bar.norm.vmax
    if panel.scale == "log":
        steps = [digit * 10.0**power for power in range(-6, 7) for digit in (1, 2, 5)]
        ticks = [step for step in steps if low <= step <= high]
        ticks = ticks[:: 1 + len(ticks) // 6] or [low, high]
    elif panel.scale == "root":
        ticks = [low + (high - low) * part**2 for part in (0, 0.33, 0.67, 1)]
    else:
        ticks = [tick for tick in MaxNLocator(nbins=4, min_n_ticks=3).tick_values(low, high) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" if tick < 10 else f"{tick:.0f}" for tick in ticks])
    bar.ax.minorticks_off()


def _ticks(names: tuple[int, ...], most: int) -> tuple[list[int], list[str]]:
    """Places and labels: every one, or every second, fifth or tenth."""
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 1000) if len(names) <= step * most)
    places = list(range(0, len(names), step))
    return places, [str(names[place]) for place in places]


# ---- curves over depth


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
    figure = _figure(size, title, left)
    axes = []
    y = size[1] - top
    for height in heights:
        y -= height
        panel = figure.add_axes((left / size[0], y / size[1], (size[0] - left - right) / size[0], height / size[1]))
        y -= gap
        panel.set_xlim(layers[0] - 0.6, layers[-1] + 0.6)
        places, names = _ticks(layers, 24)
        panel.set_xticks([layers[place] for place in places], names if height is heights[-1] or rows == 1 else [])
        panel.tick_params(labelsize=8, color=GREY)
        panel.grid(axis="y", color="#f0f0f0", linewidth=0.8)
        panel.set_axisbelow(True)
        for side in ("top", "right"):
            panel.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            panel.spines[side].set_color(GREY)
        axes.append(panel)
    for panel in axes[:-1]:
        panel.set_xticklabels([])
    axes[-1].set_xticks([layers[place] for place in places], names)
    axes[-1].set_xlabel("layer", fontsize=9)
    return figure, axes


def _dots(
    panel: Any, places: Any, values: torch.Tensor, colour: str, label: str | None, error: torch.Tensor | None = None
) -> None:
    spread = torch.linspace(-0.2, 0.2, values.shape[1]) if error is not None else torch.zeros(values.shape[1])
    for head in range(values.shape[1]):
        x = [place + spread[head].item() for place in places]
        options = {"color": colour, "alpha": 0.45, "markersize": 4, "markeredgewidth": 0, "linestyle": "none"}
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


# ---- figures


def _figure(size: tuple[float, float], title: str, left: float) -> Any:
    """A figure without a window, its title at the upper left: what is shown, and below it of what."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=size)
    FigureCanvasAgg(figure)
    heading, _, over = title.partition(": ")
    figure.text(left / size[0], 1 - 0.12 / size[1], heading, fontsize=11, color=INK, ha="left", va="top")
    figure.text(left / size[0], 1 - 0.34 / size[1], over, fontsize=8.5, color=FAINT, ha="left", va="top")
    return figure


def _frame(panel: Any) -> None:
    for side in panel.spines.values():
        side.set_color(GREY)


def _finish(figure: Any, path: str | Path, provenance: str) -> None:
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Description": provenance})
