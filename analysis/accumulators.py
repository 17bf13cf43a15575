"""Statistics of a stream of numbers, kept in memory of a fixed size: parts can be merged in any order.

Every accumulator follows many cells (a statistic of a layer's head) side by side. A NaN says that an image has no value
for a cell, and is passed over.

Shapes: B images, M cells, K classes.
"""

import math
from collections.abc import Mapping
from statistics import NormalDist
from typing import Any

import torch

State = dict[str, torch.Tensor]

RELATIVE_ACCURACY = 0.005
SMALLEST, LARGEST = 1e-12, 1e12  # magnitudes beyond these are not told apart


class Moments:
    """Count, mean and variance (Welford 1962; merged as in Chan, Golub & LeVeque 1979), in float64.

    Args:
        shape: Of the cells.

    Example:

    ```python
    >>> moments = Moments((2,))
    >>> moments.update(torch.tensor([[1.0, 5.0], [3.0, math.nan]]))
    >>> moments.count.tolist(), moments.mean.tolist()
    ([2, 1], [2.0, 5.0])
    >>> moments.standard_deviation()
    tensor([1.4142,    nan], dtype=torch.float64)

    ```
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = torch.zeros(shape, dtype=torch.int64)
        self.mean = torch.zeros(shape, dtype=torch.float64)
        self.squares = torch.zeros(shape, dtype=torch.float64)  # sum of squared distances from the mean

    def update(self, values: torch.Tensor) -> None:
        """Add a batch: (B, *shape)."""
        self._join(*_moments_of(values), ...)

    def update_rows(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Add each image to the row of its class: rows (B,), values (B, *shape[1:])."""
        for row in rows.unique().tolist():
            self._join(*_moments_of(values[rows == row]), row)

    def merge(self, other: "Moments") -> None:
        """Add what another one has seen."""
        self._join(other.count, other.mean, other.squares, ...)

    def _join(self, count: torch.Tensor, mean: torch.Tensor, squares: torch.Tensor, where: Any) -> None:
        mine = self.count[where]
        total = (mine + count).clamp_min(1)
        shift = mean - self.mean[where]
        self.squares[where] += squares + shift.square() * mine * count / total
        self.mean[where] += shift * count / total
        self.count[where] += count

    def standard_deviation(self) -> torch.Tensor:
        """Over images, with n - 1; NaN for fewer than two."""
        spread = (self.squares / (self.count - 1).clamp_min(1)).sqrt()
        return spread.masked_fill(self.count < 2, math.nan)

    def half_interval(self, confidence: float = 0.95) -> torch.Tensor:
        """Half the width of the mean's confidence interval (Student's t); NaN for fewer than two."""
        factors = {n: student_quantile((1 + confidence) / 2, n - 1) for n in self.count.unique().tolist() if n > 1}
        factor = torch.full(self.count.shape, math.nan, dtype=torch.float64)
        for n, value in factors.items():
            factor[self.count == n] = value
        return factor * self.standard_deviation() / self.count.sqrt()

    def state(self) -> State:
        """Everything, as tensors by name; `load_state` takes it back."""
        return {"count": self.count, "mean": self.mean, "squares": self.squares}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        self.count, self.mean, self.squares = (state[name].clone() for name in ("count", "mean", "squares"))


class Quantiles:
    """A sketch of each cell's distribution from which quantiles are read, to 0.5 % of their value.

    Numbers are counted in bins whose edges grow by a fixed factor (DDSketch: Masson, Rim & Lee 2019, arXiv
    1908.10693), for both signs, so that merging adds whole numbers and no order matters. Only bins that hold something
    are kept. A number at a bin's edge may fall to either side when it is rounded otherwise; a quantile then moves
    by its accuracy. Magnitudes below 1e-12 are not told apart, nor are those above 1e12. No quantile lies outside the
    range of the data: each cell's smallest and largest number are kept.

    Args:
        cells: How many.

    Example:

    ```python
    >>> quantiles = Quantiles(1)
    >>> quantiles.update(torch.arange(1.0, 102.0)[:, None])
    >>> round(quantiles.quantile(0.5).item())
    51

    ```
    """

    _GROWTH = (1 + RELATIVE_ACCURACY) / (1 - RELATIVE_ACCURACY)
    _EDGE = math.ceil(math.log(LARGEST) / math.log(_GROWTH))  # the bins of one sign: -_EDGE to _EDGE
    _ZERO = 2 * _EDGE + 2
    _BINS = 2 * _ZERO + 1
    _PENDING = 1_000_000

    def __init__(self, cells: int) -> None:
        self.cells = cells
        self._keys = torch.zeros(0, dtype=torch.int64)  # cell * _BINS + bin, sorted
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._smallest = torch.full((cells,), math.inf, dtype=torch.float64)
        self._largest = torch.full((cells,), -math.inf, dtype=torch.float64)

    def update(self, values: torch.Tensor) -> None:
        """Add a batch: (B, M)."""
        self._count(values.double(), torch.arange(self.cells).expand_as(values))

    def update_rows(self, rows: torch.Tensor, values: torch.Tensor) -> None:
        """Add each image to the row of its class: rows (B,), values (B, columns); cell row * columns + column."""
        columns = values.shape[1]
        self._count(values.double(), rows[:, None] * columns + torch.arange(columns))

    def _count(self, values: torch.Tensor, cells: torch.Tensor) -> None:
        """Add numbers (B, M) to their cells (B, M)."""
        magnitude = values.abs().clamp(max=LARGEST)
        # Magnitudes too small for a bin are replaced below; the clamp keeps the logarithm finite.
        bins = (magnitude.clamp_min(SMALLEST).log() / math.log(self._GROWTH)).ceil().long() + self._EDGE + 1
        bins = torch.where(values < 0, self._ZERO - bins, self._ZERO + bins)
        bins = bins.masked_fill(magnitude < SMALLEST, self._ZERO)
        known = ~values.isnan()
        self._add(*(cells * self._BINS + bins)[known].unique(return_counts=True))
        self._smallest.scatter_reduce_(0, cells[known], values[known], "amin")
        self._largest.scatter_reduce_(0, cells[known], values[known], "amax")

    def merge(self, other: "Quantiles") -> None:
        """Add what another one has seen."""
        state = other.state()
        self._add(state["keys"], state["counts"])
        self._smallest = torch.minimum(self._smallest, state["smallest"])
        self._largest = torch.maximum(self._largest, state["largest"])

    def quantile(self, share: float) -> torch.Tensor:
        """The smallest number that at least this share of a cell's numbers does not exceed: (M,); NaN without any.

        It is the inverse of the empirical distribution function, type 1 of Hyndman & Fan 1996: of two numbers, the
        larger one for every share above 1/2.

        Raises:
            ValueError: the share is not from 0 to 1.
        """
        if not 0 <= share <= 1:
            raise ValueError(f"share={share!r} is no share; pass a number from 0 to 1, such as 0.95")
        state = self.state()
        cell = state["keys"] // self._BINS
        total = torch.zeros(self.cells, dtype=torch.int64).index_add_(0, cell, state["counts"])
        before = total.cumsum(0) - total  # numbers in earlier cells
        running = state["counts"].cumsum(0)
        # A whole number that is rounded up, such as 0.07 * 100, is not the next one.
        wanted = before + ((share * (1 - 1e-12) * total.double()).ceil().long() - 1).clamp_min(0)
        place = torch.searchsorted(running, wanted, right=True).clamp_max(max(len(running) - 1, 0))
        if not len(running):
            return torch.full((self.cells,), math.nan, dtype=torch.float64)
        found = self._middle(state["keys"][place] % self._BINS).clamp(self._smallest, self._largest)
        return found.masked_fill(total == 0, math.nan)

    def state(self) -> State:
        """The bins that hold something: sorted keys and their counts; each cell's smallest and largest number."""
        if self._waiting:
            keys = torch.cat([self._keys, *(keys for keys, _ in self._waiting)])
            counts = torch.cat([self._counts, *(counts for _, counts in self._waiting)])
            self._keys, places = keys.unique(return_inverse=True)
            self._counts = torch.zeros_like(self._keys).index_add_(0, places, counts)
            self._waiting = []
        return {
            "keys": self._keys,
            "counts": self._counts,
            "smallest": self._smallest,
            "largest": self._largest,
        }

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        self._keys, self._counts, self._waiting = state["keys"].clone(), state["counts"].clone(), []
        self._smallest, self._largest = state["smallest"].clone(), state["largest"].clone()

    def _add(self, keys: torch.Tensor, counts: torch.Tensor) -> None:
        self._waiting.append((keys, counts))
        # Sorted in seldom, so that the cost for each number does not grow with what is there.
        if sum(len(waiting) for waiting, _ in self._waiting) > max(self._PENDING, len(self._keys)):
            self.state()

    def _middle(self, bins: torch.Tensor) -> torch.Tensor:
        offset = bins - self._ZERO
        exponent = (offset.abs() - self._EDGE - 1).double()
        magnitude = 2 * self._GROWTH**exponent / (self._GROWTH + 1)
        return magnitude * offset.sign()


class Sums:
    """Mean and second moment of vectors: (1/n) sum x and (1/n) sum x x^T, in float64.

    Args:
        shape: (..., D): many kinds of vectors of length D side by side.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = torch.zeros(shape[:-1], dtype=torch.int64)
        self.first = torch.zeros(shape, dtype=torch.float64)
        self.second = torch.zeros((*shape, shape[-1]), dtype=torch.float64)

    def update(self, count: int, first: torch.Tensor, second: torch.Tensor, where: Any) -> None:
        """Add `count` vectors with the sum `first` (..., D) and the sum of products `second` (..., D, D)."""
        self.count[where] += count
        self.first[where] += first
        self.second[where] += second

    def merge(self, other: "Sums") -> None:
        """Add what another one has seen."""
        self.count += other.count
        self.first += other.first
        self.second += other.second

    def means(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (..., D) and second moment (..., D, D)."""
        count = self.count.clamp_min(1)
        return self.first / count[..., None], self.second / count[..., None, None]

    def state(self) -> State:
        """Everything, as tensors by name; `load_state` takes it back."""
        return {"count": self.count, "first": self.first, "second": self.second}

    def load_state(self, state: Mapping[str, torch.Tensor]) -> None:
        """Go on from what `state` gave."""
        self.count, self.first, self.second = (state[name].clone() for name in ("count", "first", "second"))


def student_quantile(share: float, degrees: int) -> float:
    """Quantile of Student's t distribution, up to 0.975 within 0.3 % (Abramowitz & Stegun 1964, 26.7.5).

    Exact for 1 and 2 degrees of freedom; with 3, within 0.8 % at 0.995.

    Example:

    ```python
    >>> round(student_quantile(0.975, 1), 3), round(student_quantile(0.975, 371), 3)
    (12.706, 1.966)

    ```
    """
    if degrees == 1:
        return math.tan(math.pi * (share - 0.5))
    if degrees == 2:
        centred = 2 * share - 1
        return centred * math.sqrt(2 / (1 - centred**2))
    z = NormalDist().inv_cdf(share)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92_160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _moments_of(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = values.double()
    known = ~values.isnan()
    count = known.sum(dim=0)
    mean = values.nansum(dim=0) / count.clamp_min(1)
    squares = (values - mean).masked_fill(~known, 0).square().sum(dim=0)
    return count, mean, squares
