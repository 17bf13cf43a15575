"""The confusion matrix as a picture that can be read with two classes and with a hundred."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .figure import FAINT, INK, add_axes, colour_bar, frame, new_figure, save

MOST_NUMBERS = 20  # classes; beyond that, a number does not fit into its cell
MOST_NAMES = 120
LISTED = 12


class Confusion(NamedTuple):
    """Images of one class that were taken for another."""

    images: int
    of: int
    name: str
    taken_for: str


def confusions(counts: np.ndarray, rows: Sequence[str], columns: Sequence[str]) -> list[Confusion]:
    """What is taken for what, the most frequent first.

    Args:
        counts: (rows, columns), images of each class by what they were taken for; the first columns are the rows'
            classes.
        rows, columns: The names.

    Example:

    ```python
    >>> confusions(np.array([[8, 2], [0, 5]]), ["cat", "dog"], ["cat", "dog"])
    [Confusion(images=2, of=10, name='cat', taken_for='dog')]

    ```
    """
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")
    pairs = (divmod(int(place), wrong.shape[1]) for place in order)
    return [
        Confusion(int(wrong[row, column]), int(counts[row].sum()), rows[row], columns[column])
        for row, column in pairs
        if wrong[row, column]
    ]


def draw_confusion(
    counts: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    path: str | Path,
    *,
    title: str,
    provenance: str = "",
) -> None:
    """Write the picture: colour is the share of a row, so that classes of any size can be compared.

    Few classes have the number of images in each cell. The most frequent confusions stand beside the matrix.

    Args:
        counts: (rows, columns) integers, images of each class by what they were taken for. The first columns are the
            rows' classes; there may be one more, for all others that the model knows.
        rows, columns: The names.
        path: The PNG file to write.
        title: Stands above.
        provenance: Written into the file, as its description.

    Raises:
        ValueError: the names do not fit the matrix.

    Example:

    ```python
    >>> names = ["cat", "dog"]
    >>> draw_confusion(np.array([[8, 2], [0, 5]]), names, names, "confusion.png", title="pets: 87 % of 15 right")

    ```
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(counts)
    if counts.shape != (len(rows), len(columns)) or len(columns) < len(rows):
        raise ValueError(
            f"the matrix is {counts.shape} and there are {len(rows)} names of rows and {len(columns)} of columns; pass"
            " a name for each"
        )
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    found = confusions(counts, rows, columns)
    rows, columns = [_short(name) for name in rows], [_short(name) for name in columns]
    figure, panel, bar, notes = _layout(rows, columns, title, lines=min(len(found), LISTED))
    # Steeper near 0: a confusion of one in twenty has to be seen beside a class that is mostly right.
    scale = PowerNorm(0.6, vmin=0, vmax=1)
    shown = panel.imshow(shares, cmap="Blues", norm=scale, aspect="equal", interpolation="nearest")
    _name(panel, rows, columns)
    if len(rows) <= MOST_NUMBERS:
        _write_counts(panel, counts, np.asarray(scale(shares)), _font_size(len(rows)))
    colours = colour_bar(figure, shown, cax=bar, ticks=[0, 0.05, 0.2, 0.4, 0.6, 0.8, 1], format=_percent)
    colours.set_label("share of the images of a class", fontsize=8, color=FAINT)
    _list(notes, found)
    save(figure, path, provenance)


def _percent(share: float, _: Any) -> str:
    return f"{share:.0%}"


def _font_size(count: int) -> float:
    """Of the names, in points: a name takes the height of a cell."""
    return float(np.clip(0.7 * 72 * _cell(count), 4.5, 9))


def _cell(count: int) -> float:
    """Width of a cell in inches."""
    return float(np.clip(6 / count, 0.085, 1.0)) if count <= MOST_NAMES else 10 / count


def _turn(count: int) -> int:
    """Degrees by which the names of the columns are turned."""
    return 45 if count <= MOST_NUMBERS else 90


def _layout(rows: Sequence[str], columns: Sequence[str], title: str, lines: int) -> tuple[Any, Any, Any, Any]:
    """A figure with the axes of the matrix, of its colour bar and of the list."""
    cell = _cell(len(rows))
    letter = 0.6 * _font_size(len(rows)) / 72
    named = len(rows) <= MOST_NAMES
    of_names = 0.25 + letter * max(map(len, rows)) if named else 0.3
    above = 0.6
    upright = np.sin(np.deg2rad(_turn(len(rows))))
    below = 0.5 + (upright * letter * max(map(len, columns)) if named else 0)
    width, height = cell * len(columns), cell * len(rows)
    of_list = 3.3
    # The list needs room for its lines, also beside two classes.
    total_height = max(above + height + below, above + 0.2 * (lines + 3))
    total_width = 0.35 + of_names + width + 0.95 + of_list
    figure = new_figure(total_width, total_height)
    left, bottom = 0.35 + of_names, total_height - above - height
    figure.suptitle(title, x=0.2 / total_width, y=1 - 0.2 / total_height, ha="left", va="top", fontsize=10, color=INK)
    of_matrix = add_axes(figure, left, bottom, width, height)
    of_bar = add_axes(figure, left + width + 0.15, bottom + height - min(height, 2.5), 0.12, min(height, 2.5))
    of_text = add_axes(figure, left + width + 1.05, 0, of_list, total_height - above)
    of_text.set_axis_off()
    return figure, of_matrix, of_bar, of_text


def _name(panel: Any, rows: Sequence[str], columns: Sequence[str]) -> None:
    size = _font_size(len(rows))
    panel.set_ylabel("class", fontsize=8, color=FAINT)
    panel.set_xlabel("taken for", fontsize=8, color=FAINT)
    if len(rows) <= MOST_NAMES:
        panel.set_yticks(range(len(rows)), rows, fontsize=size)
        panel.set_xticks(range(len(columns)), columns, fontsize=size)
        turn = _turn(len(rows))
        anchor = {"va": "top" if turn == 45 else "center", "rotation_mode": "anchor"}
        for name in panel.get_xticklabels():
            name.set(rotation=turn, ha="right", **anchor)
    panel.tick_params(length=0, pad=2)
    frame(panel)


def _write_counts(panel: Any, counts: np.ndarray, darkness: np.ndarray, size: float) -> None:
    for (row, column), count in np.ndenumerate(counts):
        if count:
            colour = "white" if darkness[row, column] > 0.55 else INK
            panel.text(column, row, f"{count:,}", ha="center", va="center", fontsize=size, color=colour)


def _list(panel: Any, found: list[Confusion]) -> None:
    """The most frequent confusions as lines of text."""
    lines = [
        f"{_short(one.name, 18)} taken for {_short(one.taken_for, 18)}: {one.images:,} of {one.of:,}"
        for one in found[:LISTED]
    ]
    text = "\n".join(lines) if lines else "every image is right"
    panel.text(0, 1, "most frequent confusions", fontsize=8.5, color=INK, va="top", transform=panel.transAxes)
    panel.annotate(
        text,
        (0, 1),
        (0, -18),
        xycoords="axes fraction",
        textcoords="offset points",
        fontsize=7.5,
        color=FAINT,
        va="top",
        linespacing=1.6,
    )


def _short(name: str, most: int = 24) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
