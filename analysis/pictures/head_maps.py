"""Heat maps, layers by heads: of what was collected over images, and of what the weights alone say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ..collected import Collected
from ..weights import WeightStatistics
from .figure import FAINT, GREY, INK, add_axes, colour_bar, frame, save, ticks, titled_figure

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
    figure = titled_figure(*size, title, left)
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        x, y = left + column * step_x, size[1] - top - row * step_y - height - 0.25
        axes = add_axes(figure, x, y, width, height)
        bar_axes = add_axes(figure, x + width + 0.07, y, 0.09, height)
        _heat_map(figure, axes, bar_axes, panel, values[panel.statistic], layers)
        if column == 0:
            axes.set_ylabel("layer", fontsize=8)
        below = "head" if not notes or panel.statistic not in notes else f"head · {notes[panel.statistic]}"
        axes.set_xlabel(below, fontsize=7.5, labelpad=2)
    save(figure, path, provenance)


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
    axes.set_xticks(*ticks(tuple(range(values.shape[1])), 8))
    axes.set_yticks(*ticks(layers, 14))
    axes.tick_params(labelsize=7, length=0, pad=2)
    axes.set_xticks([edge - 0.5 for edge in range(1, values.shape[1])], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    frame(axes)
    bar = colour_bar(figure, shown, cax=bar_axes)
    bar.ax.tick_params(labelsize=6.5, pad=1)
    _set_ticks(bar, panel)


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
