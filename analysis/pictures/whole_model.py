"""All pictures of what was collected over a data set."""

from pathlib import Path
from typing import Any

from ..collected import Collected
from .depth_curves import draw_distance, draw_sinks
from .head_maps import HEAD_PANELS, draw_head_maps
from .places import draw_places, draw_rollout


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
    if collected.grid is not None and "rollout_entropy" in has:
        whose = "What the class token takes" if "rollout_on_class_token" in has else "What the last patches take"
        draw(draw_rollout, "rollout.png", f"{whose}, by rollout, from the patches that enter each layer: {over}")
    return written
