"""Heat maps, layers by heads: of what was collected over images, and of what the weights alone say."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..collected import Collected
from ..weights import WeightStatistics
from .figure import FAINT, GREY, INK, add_axes, colour_bar, frame, save, ticks, titled_figure
from .scales import Kind, Scale, scale_of

MAX_PANELS_IN_A_ROW = 5
CELL = 0.16  # inches across, at least


@dataclass(frozen=True)
class Panel:
    """How a statistic is shown: its title, what its colours mean, and its scale.

    `ends` are for a share whose middle has a meaning: its colours then go from one to another colour, over white.
    All other scales are those of `scale_of`: from 0 to the largest value, or from the smallest where all lie close
    together. What is said of a scale there stands beside the unit: "nats, from 4.9, not 0".
    """

    statistic: str
    title: str
    unit: str
    scale: Kind = "linear"
    ends: tuple[float, float] | None = None


HEAD_PANELS = (
    Panel("entropy", "Entropy", "nats"),
    Panel("distance", "Attention distance", "patches"),
    Panel("on_neighbours", "On the 8 neighbours", "share of weight"),
    Panel("on_self", "On itself", "share of weight"),
    Panel("on_class_token", "On the class token", "share of weight"),
    Panel("on_registers", "On registers", "share of weight"),
    Panel("on_outliers", "On outlier patches", "share of weight", "root"),
    Panel("largest_received", "Most drawn by a patch", "times the average", "log"),
    Panel("head_similarity", "Likeness to other heads", "mean cosine"),
    Panel("output_share", "Share of the output", "1 / heads if equal"),
)
WEIGHT_PANELS = (
    Panel("qk_effective_rank_with_gain", "Effective rank, QK", "at most the head's width"),
    Panel("qk_symmetric_share_with_gain", "Symmetric share, QK", "1/2 if random", ends=(0.0, 1.0)),
    Panel("query_bias_share", "Scores by the query's bias", "share of variance"),
    Panel("qk_norm_with_gain", "Norm, QK", "Frobenius", "log"),
    Panel("ov_effective_rank_with_gain", "Effective rank, OV", "at most the head's width"),
    Panel("ov_symmetric_share_with_gain", "Symmetric share, OV", "1/2 if random", ends=(0.0, 1.0)),
    Panel("value_bias_share", "Output by the value's bias", "share of mean square"),
    Panel("ov_norm_with_gain", "Norm, OV", "Frobenius", "log"),
)


def draw_head_maps(collected: Collected, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write heat maps, layers by heads, of the main statistics' means over images.

    With a control, the mean of its heads stands beside each layer, in the same colours, and that of all below.

    Args:
        collected: From `collect`.
        path: The PNG file to write.
        title: Stands above; what follows a colon comes below it, smaller.
        provenance: Written into the file, as its description.
    """
    panels = [panel for panel in HEAD_PANELS if panel.statistic in collected.statistics]
    values = {panel.statistic: collected.mean(panel.statistic) for panel in panels}
    panels = [panel for panel in panels if not values[panel.statistic].isnan().all()] or panels
    control = None
    if collected.control is not None:
        control = {panel.statistic: collected.control.mean(panel.statistic) for panel in panels}
    _draw_maps(panels, values, control, collected.layers, path, title, provenance)


def draw_weight_maps(statistics: WeightStatistics, path: str | Path, *, title: str, provenance: str = "") -> None:
    """Write heat maps, layers by heads, of what the weights alone say; beside them, the mean of random weights."""
    values = {panel.statistic: statistics.numbers[panel.statistic] for panel in WEIGHT_PANELS}
    control = None if statistics.control is None else statistics.control.numbers
    _draw_maps(list(WEIGHT_PANELS), values, control, statistics.layers, path, title, provenance)


def _draw_maps(
    panels: list[Panel],
    values: dict[str, torch.Tensor],
    control: dict[str, torch.Tensor] | None,
    layers: tuple[int, ...],
    path: str | Path,
    title: str,
    provenance: str,
) -> None:
    num_layers, num_heads = next(iter(values.values())).shape
    width, height = max(1.6, CELL * num_heads), min(max(1.2, 0.2 * num_layers), 5.2)
    across = min(MAX_PANELS_IN_A_ROW, len(panels))
    across = math.ceil(len(panels) / math.ceil(len(panels) / across))
    down = math.ceil(len(panels) / across)
    beside = 0.0 if control is None else CELL + 0.12
    left, top, right, step_x, step_y = 0.55, 0.7, 0.2, width + beside + 0.92, height + 0.85
    size = (left + across * step_x - 0.2 + right, top + down * step_y)
    figure = titled_figure(*size, title, left)
    for place, panel in enumerate(panels):
        row, column = divmod(place, across)
        x, y = left + column * step_x, size[1] - top - row * step_y - height - 0.25
        random = None if control is None else control[panel.statistic]
        axes = add_axes(figure, x, y, width, height)
        strip = None if random is None else add_axes(figure, x + width + 0.12, y, CELL, height)
        bar_axes = add_axes(figure, x + width + beside + 0.07, y, 0.09, height)
        _heat_map(figure, axes, strip, bar_axes, panel, values[panel.statistic], random, layers)
        if column == 0:
            axes.set_ylabel("layer", fontsize=8)
        below = "head" if random is None else f"head · mean of random: {random.nanmean():.3g}"
        axes.set_xlabel(below, fontsize=7.5, labelpad=2)
    save(figure, path, provenance)


def _heat_map(
    figure: Any,
    axes: Any,
    strip: Any,
    bar_axes: Any,
    panel: Panel,
    values: torch.Tensor,
    random: torch.Tensor | None,
    layers: tuple[int, ...],
) -> None:
    """`values`, with `random` averaged over heads in the `strip` beside them: (layers, heads) both."""
    of_layers = None if random is None else random.nanmean(dim=1, keepdim=True)
    everything = values.flatten() if of_layers is None else torch.cat([values.flatten(), of_layers.flatten()])
    scale = scale_of(everything, panel.scale) if panel.ends is None else Scale(*panel.ends)
    shown = _cells(axes, values, panel, scale)
    axes.set_title(f"{panel.title}\n", fontsize=9, loc="left", pad=1, color=INK)
    unit = ", ".join(filter(None, (panel.unit, scale.remark)))
    axes.text(0, 1.01, unit, transform=axes.transAxes, fontsize=7, color=FAINT, va="bottom")
    axes.set_xticks(*ticks(tuple(range(values.shape[1])), 8))
    axes.set_yticks(*ticks(layers, 14))
    if of_layers is not None:
        _cells(strip, of_layers, panel, scale)
        strip.set_xticks([0], ["random"])
        strip.set_yticks([])
    bar = colour_bar(figure, shown, cax=bar_axes)
    bar.ax.tick_params(labelsize=6.5, pad=1)
    marks = scale.ticks()
    bar.set_ticks(marks, labels=[f"{mark:.3g}" if mark < 1000 else f"{mark:.0f}" for mark in marks])
    bar.ax.minorticks_off()


def _cells(axes: Any, values: torch.Tensor, panel: Panel, scale: Scale) -> Any:
    """A colour for each value, with white lines between them."""
    from matplotlib import colormaps

    colours = colormaps["YlGnBu" if panel.ends is None else "RdBu_r"].with_extremes(bad=GREY)
    known = values.masked_fill(~values.isfinite(), torch.nan)
    shown = axes.imshow(known, cmap=colours, norm=scale.norm(), aspect="auto", interpolation="nearest")
    axes.set_xticks([edge - 0.5 for edge in range(1, values.shape[1])], minor=True)
    axes.set_yticks([edge - 0.5 for edge in range(1, values.shape[0])], minor=True)
    axes.grid(which="minor", color="white", linewidth=0.6)
    axes.tick_params(labelsize=7, length=0, pad=2)
    axes.tick_params(which="minor", length=0)
    frame(axes)
    return shown
