"""Where the colours of a heat map begin and end, what is said about it, and the numbers beside the colour bar."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

Kind = Literal["linear", "root", "log"]

MANY_TIMES = 10  # from this ratio of largest to smallest on, a scale may be bent
NARROWEST = 0.1  # of the largest value


@dataclass(frozen=True)
class Scale:
    """From values to colours: `low` has the first colour, `high` the last."""

    low: float
    high: float
    kind: Kind = "linear"

    @property
    def remark(self) -> str:
        """What a reader has to know about it: that it does not begin at 0, or is no straight line."""
        if self.kind != "linear":
            return f"{self.kind} scale"
        return f"from {self.low:.3g}, not 0" if self.low else ""

    def norm(self) -> Any:
        """The same for matplotlib."""
        from matplotlib.colors import LogNorm, Normalize, PowerNorm

        if self.kind == "log":
            return LogNorm(self.low, self.high)
        return PowerNorm(0.5, self.low, self.high) if self.kind == "root" else Normalize(self.low, self.high)

    def ticks(self) -> list[float]:
        """Three to six numbers to write beside the colours."""
        from matplotlib.ticker import MaxNLocator

        if self.kind == "root":
            return [0.0, *dict.fromkeys(_rounded_down(self.high * part**2) for part in (0.33, 0.67, 1))]
        if self.kind == "log":
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
            found = [step for step in steps if self.low <= step <= self.high]
            return found[:: 1 + len(found) // 6]
        places = MaxNLocator(nbins=5, min_n_ticks=3, steps=[1, 2, 5, 10]).tick_values(self.low, self.high)
        return [place for place in places if self.low <= place <= self.high]


def _rounded_down(value: float) -> float:
    """To one digit.

    Example:

    ```python
    >>> _rounded_down(0.0378)
    0.03

    ```
    """
    power = math.floor(math.log10(value))
    return round(math.floor(value / 10.0**power + 1e-9) * 10.0**power, -power)


def scale_of(values: torch.Tensor, kind: Kind = "linear") -> Scale:
    """A scale on which differences can be seen, and small ones do not look large.

    - It goes from 0 to the largest value, and below 0 to the smallest. So colours can be compared as amounts.
    - Where all values lie in the upper third of that, it begins at the smallest: from 0, they would all look alike.
    - It is never narrower than a tenth of the largest value: otherwise noise would become a pattern.
    - A scale by roots or logarithms, for statistics of which a few heads have most, is used where the largest value is
      ten times the smallest or more; otherwise it is linear.

    Args:
        values: Any shape; NaN and infinity are passed over.
        kind: What is wanted.

    Example:

    ```python
    >>> scale_of(torch.tensor([1.0, 4.0]))
    Scale(low=0, high=4.0, kind='linear')
    >>> scale_of(torch.tensor([4.5, 5.0])), scale_of(torch.tensor([4.5, 5.0])).remark
    (Scale(low=4.5, high=5.0, kind='linear'), 'from 4.5, not 0')
    >>> scale_of(torch.tensor([4.0, 4.0])).low
    3.6
    >>> scale_of(torch.tensor([1.0, 40.0]), "log")
    Scale(low=1.0, high=40.0, kind='log')

    ```
    """
    known = values[values.isfinite()].tolist()
    smallest, largest = min(known, default=0.0), max(known, default=0.0)
    if smallest == largest == 0:
        return Scale(0, 1)
    bent = largest >= MANY_TIMES * smallest >= 0
    if kind == "log" and bent and smallest > 0:
        return Scale(smallest, largest, "log")
    if kind == "root" and bent:
        return Scale(0, largest, "root")
    if largest > 0 and smallest > largest * 2 / 3:
        return Scale(min(smallest, (1 - NARROWEST) * largest), largest)
    return Scale(min(smallest, 0), max(largest, 0))
