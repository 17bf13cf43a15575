"""What the pictures are drawn from: random numbers for a model of any size."""

from collections.abc import Callable

import pytest
import torch

from qkvit.analysis import TokenLayout
from qkvit.analysis.collected import Collected
from qkvit.analysis.pictures.head_maps import HEAD_PANELS
from qkvit.analysis.tally import Batch, Tally

LAYOUTS = [
    TokenLayout(grid=(4, 4), has_class_token=True),
    TokenLayout(grid=(2, 5)),
    TokenLayout(grid=(3, 2), has_class_token=True, has_distillation_token=True, num_register_tokens=2),
    TokenLayout(grid=(3, 3), num_prefix_tokens=1),
]


@pytest.fixture(autouse=True)
def _needs_matplotlib() -> None:
    pytest.importorskip("matplotlib")


@pytest.fixture(params=LAYOUTS)
def layout(request) -> TokenLayout:
    return request.param


@pytest.fixture
def tensors() -> Callable[..., tuple[torch.Tensor, ...]]:
    """`tensors(layout)`: two images, their queries, keys and values of three heads, and attention maps."""

    def make(layout: TokenLayout, batch: int = 2, heads: int = 3, width: int = 8) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        images = torch.rand(batch, 8 * layout.grid[0], 8 * layout.grid[1], generator=generator)
        query, key, value = torch.randn(3, batch, heads, layout.num_tokens, width, generator=generator)
        return images, query, key, value, (query @ key.mT).softmax(dim=-1)

    return make


@pytest.fixture
def collected_from() -> Callable[..., Collected]:
    """`collected_from(layers, heads)`: random statistics, or `value` for all of them."""

    def make(layers, heads, grid=(4, 6), prefix=1, without=(), value=None) -> Collected:
        generator = torch.Generator().manual_seed(0)
        tally = Tally()
        for number in range(2):
            batch = Batch(number, (*grid, prefix))
            for layer in layers:
                for name in (*(panel.statistic for panel in HEAD_PANELS), "distance_fraction"):
                    if name not in without:
                        drawn = torch.rand(3, heads, generator=generator)
                        batch.values[name, layer] = drawn if value is None else torch.full_like(drawn, value)
                for name in ("outliers", "token_norm_ratio"):
                    batch.values[name, layer] = 1 + torch.rand(3, generator=generator)
                size = grid[0] * grid[1]
                for name in ("received", "rollout"):
                    batch.maps[name, layer] = torch.rand(3, prefix + size, generator=generator).double().sum(dim=0)
                batch.values["rollout_entropy", layer] = torch.rand(3, generator=generator)
            tally.add(batch, None)
        return Collected.from_tally(tally, None)

    return make


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that would be written, so that a test can look at what is in them."""
    drawn: list = []
    from matplotlib.figure import Figure

    monkeypatch.setattr(Figure, "savefig", lambda self, *args, **kwargs: drawn.append(self))
    return drawn
