"""At the end of a run: metrics.json, the curves as a picture, the table of results."""

import json
from pathlib import Path
from typing import Any

from .curves import draw_curves
from .run_folder import METRICS, write_aside

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
    drawn = draw_curves(output / CURVES, log)
    if drawn:
        written.append(CURVES)
    picture = f"\n![Loss, accuracy and learning rate by step]({CURVES})\n" if drawn else ""
    text = f"# {output.absolute().name}\n\n{results_table(metrics)}\n{facts_table(metrics)}{picture}"
    (output / TABLE).write_text(text, encoding="utf-8")
    write_aside(output / METRICS, json.dumps(metrics, indent=2) + "\n")
    return [*written, METRICS]


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


def facts_table(metrics: dict[str, Any]) -> str:
    """A Markdown table of what the run took, and its warnings.

    Example:

    ```python
    >>> print(facts_table({"steps": 9, "parameters": 7258, "total_flops": 1.2e12, "bad_images": {"a.png": "cut off"}}))
    | of the run | |
    |---|---:|
    | steps | 9 |
    | parameters | 7,258 |
    | operations of training | 1.20 TFLOPs |
    | images that could not be used | 1 |
    <BLANKLINE>

    ```
    """
    health = metrics.get("attention_health", {})
    facts = {
        "steps": _whole(metrics.get("steps")),
        "parameters": _whole(metrics.get("parameters")),
        "operations of training": _tera(metrics.get("total_flops")),
        "seconds since the last start": _whole(metrics.get("seconds_since_last_start")),
        "images a second since the last start": _whole(metrics.get("images_per_second_since_last_start")),
        "last training loss": _four(metrics.get("last_training_loss")),
        "images that could not be used": _whole(len(metrics.get("bad_images", ())) or None),
        "warnings about attention": _whole(len(health.get("warnings", ())) or None),
    }
    rows = [f"| {name} | {value} |" for name, value in facts.items() if value is not None]
    return "\n".join(["| of the run | |", "|---|---:|", *rows]) + "\n"


def _whole(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _four(value: float | None) -> str | None:
    return None if value is None else f"{value:.4f}"


def _tera(value: float | None) -> str | None:
    return None if value is None else f"{value / 1e12:,.2f} TFLOPs"
