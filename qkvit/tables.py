"""Small tables for the screen."""

from collections.abc import Sequence


def table(rows: Sequence[Sequence[str]], *, left: int = 1, indent: str = "  ") -> str:
    """Columns side by side: the first `left` of them flush left, the others flush right.

    Example:

    ```python
    >>> print(table([["model", "accuracy"], ["QKViT", "98.0 %"], ["nearest neighbour", "93.5 %"]]))
      model              accuracy
      QKViT                98.0 %
      nearest neighbour    93.5 %

    ```
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)
