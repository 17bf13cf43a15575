"""The curves of a run as one picture: loss, accuracy, learning rate, and the entropy of attention in each layer."""

import re
from pathlib import Path
from typing import Any

# Okabe and Ito's colours: told apart with any kind of colour vision.
_COLOURS = {"training": "#0072B2", "validation": "#D55E00", "validation, averaged weights": "#009E73"}
_LOSS = {"loss": "training", "eval_loss": "validation", "eval_average_loss": "validation, averaged weights"}
_SHARES = ("accuracy", "mean_average_precision")
_ENTROPY = re.compile(r"attention_health/layer_(\d+)/entropy_share")


def draw_curves(path: Path, log: list[dict[str, Any]]) -> bool:
    """Draw what a run logged; False where matplotlib is missing.

    Args:
        log: `log_history` of a Trainer: each entry has its `step`.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator
    except ImportError:
        return False
    layers = sorted({name for entry in log for name in entry if _ENTROPY.fullmatch(name)})
    count = 4 if layers else 3
    figure = Figure(figsize=(3.9 * count, 3.5), layout="constrained")
    panels = figure.subplots(1, count)
    _lines(panels[0], log, _LOSS, "loss")
    share = next((name for name in _SHARES if any(f"eval_{name}" in entry for entry in log)), "accuracy")
    names = (share, f"eval_{share}", f"eval_average_{share}")
    _lines(panels[1], log, dict(zip(names, _COLOURS, strict=True)), share.replace("_", " "), percent=True)
    _lines(panels[2], log, {"learning_rate": ""}, "learning rate")
    panels[2].yaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    if layers:
        _entropies(figure, panels[3], log, layers)
    steps = [entry["step"] for entry in log] or [0]
    margin = max(0.5, 0.04 * (max(steps) - min(steps)))
    for panel in panels:
        panel.set_xlim(min(steps) - margin, max(steps) + margin)
        panel.set_xlabel("step")
        panel.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    figure.savefig(path, dpi=130)
    return True


def _lines(panel: Any, log: list[dict[str, Any]], curves: dict[str, str], title: str, *, percent: bool = False) -> None:
    for field, label in curves.items():
        _line(panel, log, field, label=label or None, color=_COLOURS.get(label, "#555555"))
    panel.set_title(title, loc="left")
    if percent:
        panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    if any(curves.values()) and panel.lines:
        panel.legend(frameon=False, fontsize=9)


def _entropies(figure: Any, panel: Any, log: list[dict[str, Any]], layers: list[str]) -> None:
    from matplotlib import colormaps
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    depth = Normalize(0, max(len(layers) - 1, 1))
    for number, field in enumerate(layers):
        _line(panel, log, field, color=colormaps["viridis"](depth(number)))
    panel.set_title("entropy of attention", loc="left")
    panel.set_ylim(0, 1.02)
    panel.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    panel.set_ylabel("of its greatest, log N")
    ticks = MaxNLocator(6, integer=True)
    figure.colorbar(ScalarMappable(depth, "viridis"), ax=panel, pad=0.02, label="layer", ticks=ticks)


def _line(panel: Any, log: list[dict[str, Any]], field: str, **look: Any) -> None:
    points = [(entry["step"], entry[field]) for entry in log if field in entry]
    if points:
        steps, values = zip(*points, strict=True)
        panel.plot(steps, values, linewidth=1.5, marker="." if len(points) < 30 else None, **look)
