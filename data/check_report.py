"""A check of a data set as text for the screen."""

import textwrap
from typing import Any

from .check import Check
from .findings import Finding

MOST_CLASSES = 20
_WIDTH = 110


def as_text(check: Check) -> str:
    """Tables of splits and classes, then problems, then notes.

    Example:

    ```python
    >>> splits = {"train": {"images": 2, "unusable": 1, "kinds": {"JPEG RGB": 1}, "median": [40, 30]}}
    >>> splits["train"] |= {"smallest": [40, 30], "largest": [40, 30]}
    >>> finding = Finding("1 image of train cannot be used", "on_bad_image decides", True, ["1.jpg: it is empty"])
    >>> print(as_text(Check("pets", splits, {"cat": {"train": 2}}, [finding], False)))
    pets: 2 images, 1 class
    <BLANKLINE>
    split  images  unusable  smallest   median  largest  stored as
    train       2         1   40 x 30  40 x 30  40 x 30   JPEG RGB
    <BLANKLINE>
    class  train
    cat        2
    <BLANKLINE>
    1 problem
    <BLANKLINE>
    1. 1 image of train cannot be used
         1.jpg: it is empty
         Training: on_bad_image decides.

    ```
    """
    images = sum(facts["images"] for facts in check.splits.values())
    parts = [f"{check.source}: {_count(images, 'image')}, {_count(len(check.classes), 'class')}", _splits(check)]
    if check.classes:
        parts.append(_classes(check))
    problems = check.problems
    notes = [finding for finding in check.findings if not finding.problem]
    parts.append(_count(len(problems), "problem") if problems else "No problems.")
    parts += [_said(number, finding) for number, finding in enumerate(problems, 1)]
    if notes:
        parts.append("To know")
        parts += [_said(None, finding) for finding in notes]
    return "\n\n".join(parts)


def _count(number: int, word: str) -> str:
    if number == 1:
        return f"1 {word}"
    return f"{number:,} {word}{'es' if word.endswith('s') else 's'}"


def _splits(check: Check) -> str:
    rows = [["split", "images", "unusable", "smallest", "median", "largest", "stored as"]]
    for name, facts in check.splits.items():
        sizes = [
            " x ".join(map(str, facts[each])) if each in facts else "" for each in ("smallest", "median", "largest")
        ]
        kinds = sorted(facts["kinds"].items(), key=lambda item: -item[1])
        stored = ", ".join(kind if len(kinds) == 1 else f"{count:,} {kind}" for kind, count in kinds)
        rows.append([name, f"{facts['images']:,}", f"{facts['unusable']:,}", *sizes, stored])
    return _table(rows)


def _classes(check: Check) -> str:
    rows: list[list[Any]] = [["class", *check.splits]]
    shown = list(check.classes.items())
    if len(shown) > MOST_CLASSES:
        first = next(iter(check.splits))
        by_size = sorted(shown, key=lambda item: -item[1][first])
        shown = by_size[: MOST_CLASSES // 2] + by_size[-(MOST_CLASSES // 2) :]
    for position, (name, counts) in enumerate(shown):
        if len(check.classes) > MOST_CLASSES and position == MOST_CLASSES // 2:
            rows.append([f"({len(check.classes) - MOST_CLASSES} more)", *("" for _ in check.splits)])
        rows.append([name, *(f"{counts[split]:,}" for split in check.splits)])
    return _table(rows)


def _table(rows: list[list[Any]]) -> str:
    widths = [max(len(str(row[column])) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([str(row[0]).ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _said(number: int | None, finding: Finding) -> str:
    mark = "-" if number is None else f"{number}."
    lines = textwrap.wrap(f"{mark} {finding.what}", _WIDTH, subsequent_indent="   ")
    lines += [f"     {example}" for example in finding.examples]
    if finding.examples and finding.count > len(finding.examples):
        lines.append(f"     ... {finding.count - len(finding.examples):,} more")
    lines += textwrap.wrap(f"Training: {finding.training}.", _WIDTH, initial_indent="     ", subsequent_indent="     ")
    return "\n".join(lines)
