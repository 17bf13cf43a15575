"""What `collect` gives: means, intervals and quantiles of every head, as tensors and as tidy tables.

Shapes: L layers, H heads, D width of a head.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..configuration.disk_errors import as_os_errors
from .accumulators import Moments, Quantiles
from .tally import VECTORS, Cell, Tally

SHARES = {"quantile_5": 0.05, "median": 0.5, "quantile_95": 0.95}


@dataclass(frozen=True)
class Collected:
    """Statistics over a data set.

    Attributes:
        images: How many images they are over.
        bad_images: Those that were left out: dictionaries with index, name and reason.
        class_names: Names of the classes; `None` without.
        layers: The layers' numbers, in order.
        grid: Rows and columns of patches and the number of tokens before them; `None` if images differed in size.
        control: The same for the model with random weights, where it was taken too (`with_random_weights`).
    """

    images: int
    bad_images: list[dict[str, Any]]
    class_names: tuple[str, ...] | None
    layers: tuple[int, ...]
    grid: tuple[int, int, int] | None
    _tally: Tally
    control: "Collected | None" = None

    @classmethod
    def from_tally(cls, tally: Tally, class_names: tuple[str, ...] | None) -> "Collected":
        """The results of a tally that every image has gone through."""
        assert tally.cells is not None
        layers = tuple(sorted({cell.layer for cell in tally.cells}))
        grid = tally.grid if tally.maps is not None else None
        return cls(tally.images, tally.bad, class_names, layers, grid, tally)  # type: ignore[arg-type]

    @property
    def statistics(self) -> tuple[str, ...]:
        """The names of the statistics."""
        return tuple(dict.fromkeys(cell.statistic for cell in self._cells))

    def mean(self, statistic: str) -> torch.Tensor:
        """Mean over images: (L, H), or (L,) for a statistic of whole layers."""
        return self._of(statistic, self._tally.moments.mean.masked_fill(self._tally.moments.count == 0, torch.nan))

    def standard_deviation(self, statistic: str) -> torch.Tensor:
        """Over images, with n - 1: (L, H) or (L,)."""
        return self._of(statistic, self._tally.moments.standard_deviation())

    def half_interval(self, statistic: str) -> torch.Tensor:
        """Half the 95 % interval of the mean: (L, H) or (L,)."""
        return self._of(statistic, self._tally.moments.half_interval())

    def quantile(self, statistic: str, share: float) -> torch.Tensor:
        """The smallest value that at least this share of the images does not exceed, to 0.5 %: (L, H) or (L,).

        Type 1 of Hyndman & Fan 1996, as NumPy's "inverted_cdf".

        Raises:
            ValueError: the share is not from 0 to 1.
        """
        return self._of(statistic, self._tally.quantiles.quantile(share))

    def class_mean(self, statistic: str) -> torch.Tensor:
        """Mean over the images of each class: (K, L, H) or (K, L); NaN for a class without images.

        Raises:
            ValueError: there are no classes.
        """
        if not self._tally.num_classes:
            raise ValueError("there are no means of classes: collect with class names")
        moments = self._tally.classes
        mean = moments.mean.masked_fill(moments.count == 0, torch.nan)
        return torch.stack([self._of(statistic, of_class) for of_class in mean])

    def class_quantile(self, statistic: str, share: float) -> torch.Tensor:
        """`quantile` of each class's images: (K, L, H) or (K, L); NaN for a class without images.

        Raises:
            ValueError: quantiles were not collected for each class, or the share is not from 0 to 1.
        """
        if not self._tally.has_class_quantiles:
            raise ValueError("there are no quantiles of classes: collect with class names and class_quantiles=True")
        of_classes = self._tally.class_quantiles.quantile(share).view(self._tally.num_classes, len(self._cells))
        return torch.stack([self._of(statistic, of_class) for of_class in of_classes])

    def vectors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean (L, H, D) and second moment (L, H, D, D) of "query", "key", "value" or "output" (the heads' output,
        before the projection) over images and tokens."""
        found = [self._tally.vectors[name, layer].means() for layer in self.layers]
        return torch.stack([mean for mean, _ in found]), torch.stack([second for _, second in found])

    def map(self, name: str) -> torch.Tensor:
        """Mean over images of "received" for each token, all heads together (L, N), how often each patch is an outlier,
        "outliers" (L, P), or "rollout" down to each layer (L, N).

        Raises:
            ValueError: it was not collected, or images differed in size.
        """
        if not self._tally.maps or (name, self.layers[0]) not in self._tally.maps:
            asked = "rollout=True" if name == "rollout" else "the group 'received'"
            raise ValueError(f"there is no map {name!r}: ask for {asked}, and pass images of one size")
        return torch.stack([self._tally.maps[name, layer] for layer in self.layers]) / self.images

    def rows(self) -> Iterator[dict[str, Any]]:
        """The tidy table: a row for each layer, head (None: the whole layer) and statistic.

        With a control, its mean over "control_n" images stands in the column "control", between "control_low" and
        "control_high". Images of which a statistic is NaN, as the place of outliers where there are none, do not count.
        """
        columns = _columns(self._tally.moments) | _quantile_columns(self._tally.quantiles)
        if self.control is not None:
            found = _columns(self.control._tally.moments)
            columns |= {f"control_{name}".removesuffix("_mean"): found[name] for name in ("mean", "low", "high", "n")}
        for place, cell in enumerate(self._cells):
            yield cell._asdict() | {name: column[place] for name, column in columns.items()}

    def class_rows(self) -> Iterator[dict[str, Any]]:
        """The same for each class, without control."""
        columns = _columns(self._tally.classes)
        quantiles = _quantile_columns(self._tally.class_quantiles) if self._tally.has_class_quantiles else {}
        for label, name in enumerate(self.class_names or ()):
            for place, cell in enumerate(self._cells):
                numbers = {column: values[label][place] for column, values in columns.items()}
                numbers |= {column: values[label * len(self._cells) + place] for column, values in quantiles.items()}
                yield {"class": name} | cell._asdict() | numbers

    def save(self, folder: str | Path, provenance: dict[str, Any]) -> list[Path]:
        """Write everything: statistics.parquet and .csv, classes.parquet (with classes), vectors.safetensors and
        provenance.json. pandas and pyarrow are needed; both come with the package datasets.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        import pandas as pd
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = _with_whole_numbers(pd.DataFrame(self.rows()))
        table.to_parquet(folder / "statistics.parquet", index=False)
        table.to_csv(folder / "statistics.csv", index=False)
        written = ["statistics.parquet", "statistics.csv", "vectors.safetensors", "provenance.json"]
        if self.class_names:
            _with_whole_numbers(pd.DataFrame(self.class_rows())).to_parquet(folder / "classes.parquet", index=False)
            written.insert(2, "classes.parquet")
        tensors: dict[str, torch.Tensor] = {}
        for name in VECTORS:
            mean, second = self.vectors(name)
            tensors |= {f"{name}_mean": mean, f"{name}_second_moment": second}
        for name in ("received", "outliers", "rollout"):
            if self._tally.maps and (name, self.layers[0]) in self._tally.maps:
                tensors[f"{name}_map"] = self.map(name)
        with as_os_errors(folder / "vectors.safetensors"):
            save_file(tensors, folder / "vectors.safetensors", metadata={"layers": json.dumps(self.layers)})
        record = {"images": self.images, "left out": self.bad_images} | provenance
        text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
        (folder / "provenance.json").write_text(text, encoding="utf-8")
        return [folder / name for name in written]

    @property
    def _cells(self) -> list[Cell]:
        assert self._tally.cells is not None
        return self._tally.cells

    def _of(self, statistic: str, values: torch.Tensor) -> torch.Tensor:
        places = [place for place, cell in enumerate(self._cells) if cell.statistic == statistic]
        if not places:
            raise ValueError(f"there is no statistic {statistic!r}; collected are {', '.join(self.statistics)}")
        whole = self._cells[places[0]].head is None
        by_layer = [
            torch.stack([values[place] for place in places if self._cells[place].layer == layer])
            for layer in self.layers
            if any(self._cells[place].layer == layer for place in places)
        ]
        found = torch.stack(by_layer)
        return found[:, 0] if whole else found


def _columns(moments: Moments) -> dict[str, list[Any]]:
    mean = moments.mean.masked_fill(moments.count == 0, torch.nan)
    half = moments.half_interval()
    return {
        "mean": mean.tolist(),
        "standard_deviation": moments.standard_deviation().tolist(),
        "n": moments.count.tolist(),
        "low": (mean - half).tolist(),
        "high": (mean + half).tolist(),
    }


def _quantile_columns(quantiles: Quantiles) -> dict[str, list[float]]:
    return {name: quantiles.quantile(share).tolist() for name, share in SHARES.items()}


def _with_whole_numbers(table: Any) -> Any:
    """Heads as whole numbers, with a gap for statistics of whole layers."""
    table["head"] = table["head"].astype("Int64")
    return table
