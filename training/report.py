"""At the end of a run: metrics.json, the curves as a picture, the table of results."""

import json
from pathlib import Path
from typing import Any

CURVES, TABLE = "curves.png", "results.md"

_SHARES = {
    "accuracy": "accuracy",
    "mean_average_precision": "mean average precision",
    "micro_f1": "micro F1",
    "exact_match": "exact match",
}


def write_report(output: Path, metrics: dict[str, Any], log: list[dict[str, Any]]) -> list[str]:
    """Write all three, metrics.json last: where it is, the run is finished.

    Returns:
        Names of the files.
    """
    written = [TABLE]
    (output / TABLE).write_text(results_table(metrics), encoding="utf-8")
    if draw_curves(output / CURVES, log):
        written.append(CURVES)
    part = output / ".metrics.json.part"
    part.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
    part.replace(output / "metrics.json")
    return [*written, "metrics.json"]


def results_table(metrics: dict[str, Any]) -> str:
    """A Markdown table: a row for each split and kind of weights.

    Example:

    ```python
    >>> print(results_table({"validation": {"accuracy": 0.975, "loss": 0.1, "images": 360}}))
    | weights and split | images | accuracy | loss |
    |---|---:|---:|---:|
    | validation | 360 | 97.5 % | 0.1000 |
    <BLANKLINE>

    ```
    """
    parts = {name: values for name, values in metrics.items() if isinstance(values, dict) and "loss" in values}
    shown = [name for name in _SHARES if any(name in values for values in parts.values())] or ["accuracy"]
    rows = [f"| weights and split | images | {' | '.join(_SHARES[name] for name in shown)} | loss |"]
    rows.append("|---|" + "---:|" * (len(shown) + 2))
    for name, values in parts.items():
        shares = " | ".join(f"{100 * values[share]:.1f} %" if share in values else "" for share in shown)
        rows.append(f"| {name} | {values['images']:,} | {shares} | {values['loss']:.4f} |")
    return "\n".join(rows) + "\n"


def draw_curves(path: Path, log: list[dict[str, Any]]) -> bool:
    """Loss, accuracy and learning rate by step; False where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    panels = figure.subplots(1, 3)
    wanted = (
        ("loss", {"loss": "training", "eval_loss": "validation", "eval_average_loss": "validation, averaged"}),
        ("accuracy", {"eval_accuracy": "validation", "eval_average_accuracy": "validation, averaged"}),
        ("learning rate", {"learning_rate": "of the head"}),
    )
    for panel, (title, curves) in zip(panels, wanted, strict=True):
        for field, label in curves.items():
            points = [(entry["step"], entry[field]) for entry in log if field in entry]
            if points:
                panel.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 30 else None)
        panel.set_xlabel("step")
        panel.set_title(title)
        panel.grid(alpha=0.3)
        if panel.lines:
            panel.legend()
    figure.savefig(path, dpi=120)
    return True
