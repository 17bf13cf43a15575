"""What the pictures share: figures without a window, their titles, frames, colour bars and files."""

from pathlib import Path
from typing import Any

import torch

INK, FAINT, FRAME, GREY = "#1a1a1a", "#666666", "#cccccc", "#e4e4e4"
DOTS_PER_INCH = 150


def new_figure(width: float, height: float, **options: Any) -> Any:
    """A figure of so many inches, without matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def titled_figure(width: float, height: float, title: str, left: float) -> Any:
    """A figure with its title at the upper left, `left` inches from the edge: what is shown, and below it of what."""
    figure = new_figure(width, height)
    heading, _, over = title.partition(": ")
    figure.text(left / width, 1 - 0.12 / height, heading, fontsize=11, color=INK, ha="left", va="top")
    figure.text(left / width, 1 - 0.34 / height, over, fontsize=8.5, color=FAINT, ha="left", va="top")
    return figure


def add_axes(figure: Any, x: float, y: float, width: float, height: float) -> Any:
    """Axes at a place given in inches, from the lower left."""
    across, up = figure.get_size_inches()
    return figure.add_axes((x / across, y / up, width / across, height / up))


def show_image(panel: Any, image: torch.Tensor, **options: Any) -> None:
    """Draw ink on paper (height, width) or colours (3, height, width)."""
    if image.ndim == 3:
        panel.imshow(image.movedim(0, -1).clamp(0, 1), **options)
    else:
        panel.imshow(image, cmap="Greys", vmin=0, vmax=1, **options)


def frame(panel: Any) -> None:
    """A thin line around a panel."""
    for side in panel.spines.values():
        side.set_color(FRAME)


def colour_bar(figure: Any, shown: Any, **options: Any) -> Any:
    """A colour bar without an outline, with small numbers."""
    bar = figure.colorbar(shown, **options)
    bar.ax.tick_params(labelsize=7, length=2)
    bar.outline.set_visible(False)
    return bar


def ticks(names: tuple[int, ...], most: int) -> tuple[list[int], list[str]]:
    """Places and labels: every one, or every second, fourth, fifth, tenth, ..., so that there are `most` at most.

    Example:

    ```python
    >>> ticks((3, 4, 5, 6, 7), 3)
    ([0, 2, 4], ['3', '5', '7'])

    ```
    """
    step = next(step for step in (1, 2, 4, 5, 10, 20, 50, 1000) if len(names) <= step * most)
    places = list(range(0, len(names), step))
    return places, [str(names[place]) for place in places]


def save(figure: Any, path: str | Path, provenance: str) -> None:
    """Write a PNG file; where its numbers come from is its description."""
    figure.savefig(path, dpi=DOTS_PER_INCH, facecolor="white", metadata={"Description": provenance})
