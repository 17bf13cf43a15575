"""What `collect` takes from one batch: the statistics of the layers while the model runs, and rollout.

Shapes: B images, H heads, N tokens, P patches, C width of the model.
"""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch

from .attention_door import Session
from .attention_layers import check_images, chosen
from .attention_product import AttentionCall, of_all_heads
from .head_weights import output_projection
from .statistics import AttentionStatistics, attention_statistics
from .statistics.attention_rollout import rows_by_layer, rows_of_maps
from .statistics.groups import GROUPS, asked_groups
from .statistics.inputs import hides_tokens
from .statistics.layers_together import LayersTogether, Taken
from .statistics.projection import PreparedProjection
from .tally import VECTORS, Batch, Tally
from .token_layout import TokenLayout

# Up to so many tokens, rollout keeps every layer's map, the mean of its heads. Beyond, maps would be larger than the
# queries and keys. These are kept of all layers where they weigh no more than half of the model, else of half of them,
# and the other half runs again. Beyond so many tokens again, half is kept where that weighs no more than the model,
# else a quarter: the peak would be 1.8 times that of the plain pass.
TOKENS_FOR_MAPS = 400
TOKENS_FOR_HALVES = 2000

OUTLIER = 5.0  # a patch that draws so many times the average attention is counted as an outlier


class Collecting(Session):
    """Takes the statistics of the layers while the model runs.

    One layer's queries and keys are there at a time, or, of few tokens, those of several (`LayersTogether`).
    """

    def __init__(
        self, model: Any, layers: Any, statistics: list[str] | None, tally: Tally, rollout: bool = False
    ) -> None:
        super().__init__(model)
        self.chosen = chosen(layers, self.modules)
        self.groups = asked_groups(statistics, has_value=True, among=GROUPS)
        self.rollout = rollout
        self.tally = tally
        self.layout = TokenLayout(grid=(1, 1))
        self.batch = Batch(0, (1, 1, 0))
        self.contrast: torch.Tensor | None = None
        self.maps: dict[int, torch.Tensor] = {}
        self.norms: dict[int, torch.Tensor] = {}
        self.projections: dict[int, PreparedProjection] = {}
        self.stacks: dict[tuple[int, ...], PreparedProjection] = {}  # of layers that were taken together
        self.used_stacks: dict[tuple[int, ...], PreparedProjection] = {}
        self.seen: set[int] = set()
        self.reached: set[int] = set()  # with those of which nothing is wanted
        self.together = LayersTogether()
        self.is_looking = True

    def begin(self, number: int, layout: TokenLayout, pixel_values: torch.Tensor) -> Batch:
        """Another batch comes."""
        self.layout = layout
        self.batch = Batch(number, (*layout.grid, layout.num_prefix))
        self.batch_size = len(pixel_values)
        self.contrast = patch_contrast(pixel_values, layout)
        self.maps, self.norms, self.seen, self.reached = {}, {}, set(), set()
        # Those of the batch before: images of other sizes may have other groups of layers.
        self.stacks, self.used_stacks = self.used_stacks, {}
        self.is_looking = True
        return self.batch

    @property
    def missed(self) -> list[int]:
        """Layers that the batch should have reached, and has not: a rollout goes through all of them."""
        return sorted(set(self.modules if self.rollout else self.chosen) - self.reached)

    def run(self, forward: Callable[[], Any]) -> None:
        """Run the model for the batch; for rollout of many tokens, its first layers again."""
        try:
            if not self.rollout:
                self._look(forward)
                return
            for layer, row in self._rolled_out(partial(self._look, forward)):
                self.is_looking = False  # the whole model has run; what runs from here on has been seen
                if layer in self.chosen:
                    self._add_rollout(layer, row)
        finally:
            self.together.forget()  # nothing, unless an error has ended the run

    def _look(self, forward: Callable[[], Any]) -> None:
        forward()
        self._take(self.together.flush())

    def _rolled_out(self, forward: Callable[[], Any]) -> Iterator[tuple[int, torch.Tensor]]:
        if not self._keeps_maps:
            yield from rows_by_layer(self.model, forward, None, self.layout, layers_at_once=self._kept_at_once())
            return
        forward()
        layers = sorted(self.maps, reverse=True)
        maps = [self.maps.pop(layer) for layer in reversed(layers)]
        yield from zip(layers, rows_of_maps(maps, None, self.layout), strict=True)

    def _kept_at_once(self) -> int:
        """Of how many layers rollout keeps queries and keys."""
        config: Any = next(iter(self.modules.values())).config
        parameters = list(self.model.parameters())
        of_a_layer = 2 * self.batch_size * self.layout.num_tokens * config.hidden_size * parameters[0].element_size()
        of_model = sum(parameter.nbytes for parameter in parameters)
        light = of_model // max(1, of_a_layer)  # so many layers weigh no more than the model
        layers, few_tokens = len(self.modules), self.layout.num_tokens <= TOKENS_FOR_HALVES
        if few_tokens and light >= 2 * layers:
            return layers
        half = -(-layers // 2)
        return half if few_tokens or light >= half else -(-layers // 4)

    @property
    def _keeps_maps(self) -> bool:
        return self.rollout and self.layout.num_tokens <= TOKENS_FOR_MAPS

    def see(self, call: AttentionCall, seen: dict[str, torch.Tensor]) -> None:
        layer = self.layers[call.module]
        self.reached.add(layer)
        is_chosen = layer in self.chosen
        if not self.is_looking or not (is_chosen or self._keeps_maps):
            return
        if layer in self.seen:
            raise ValueError(
                f"layer {layer} runs twice for a batch, and statistics are of one run; pass forward=, a function that"
                " runs the model once, or use record(model, keep='all') and attention_statistics"
            )
        check_images(layer, call.query, self.batch_size)
        groups = self.groups if is_chosen else frozenset[str]()
        if self._keeps_maps:
            groups |= {"mean_map"}
        if groups and call.other_map is not None:
            raise ValueError(f"layer {layer}: {call.other_map}")
        mask = call.plain_mask()()
        if mask is not None:
            self.batch.hiding[layer] = hides_tokens(mask)
        heads = call.query.shape[1]
        key, value = of_all_heads(call.key, heads), of_all_heads(call.value, heads)
        vectors = {"query": call.query, "key": key, "value": value, "output": seen["output"]}
        tensors = {name: vectors[name].detach() for name in (VECTORS if is_chosen else ("query", "key"))}
        if is_chosen and "output" in call.edited:  # one of 16 bits would be computed anew, without the edit
            precise = torch.promote_types(tensors["output"].dtype, torch.float32)
            tensors["output"] = tensors["output"].to(precise)
        if "values" in groups and layer not in self.projections:
            projection = output_projection(layer, call.module, self.model)
            self.projections[layer] = PreparedProjection.of(projection, heads)
        if layer in self.norms:
            tensors["token_norms"] = self.norms.pop(layer)
        self.seen.add(layer)
        self._take(self.together.add(layer, tensors, call.scaling, mask, groups))

    def see_tokens(self, layer: int, tokens: torch.Tensor) -> None:
        """What enters a layer: (B, N, C)."""
        if self.is_looking:
            self.norms[layer] = tokens.detach()[:, self.layout.patches].float().norm(dim=-1)  # (B, P)

    def _take(self, ready: Iterable[Taken]) -> None:
        for taken in ready:
            self._add(taken)

    def _add(self, taken: Taken) -> None:
        """Layers with all that was seen of them, in the order in which they ran."""
        values: dict[str, torch.Tensor] = {}  # (layers * B, H), or (layers * B,) for whole layers
        if "token_norms" in taken.tensors:
            norms = taken.tensors["token_norms"]  # (layers * B, P)
            values["token_norm_ratio"] = norms.amax(dim=1) / _median(norms)
        if "value" in taken.tensors:  # a layer that was asked for
            for name in VECTORS:
                self.batch.add_vectors(name, taken, taken.tensors[name])
        found = self._statistics_of(taken)
        values |= found.per_head()
        if found.received is not None:
            values |= self._of_received(taken, found.received)
        if found.mean_map is not None:
            self.maps |= zip(taken.layers, taken.by_layer(found.mean_map), strict=True)
        by_layer = {name: taken.by_layer(numbers) for name, numbers in values.items()}
        for place, layer in enumerate(taken.layers):
            self.batch.values |= {(name, layer): numbers[place] for name, numbers in by_layer.items()}

    def _statistics_of(self, taken: Taken) -> AttentionStatistics:
        needs_value = "values" in taken.groups
        return attention_statistics(
            taken.tensors["query"],
            taken.tensors["key"],
            self.layout,
            scaling=taken.scaling,
            value=taken.tensors["value"] if needs_value else None,
            output=taken.tensors["output"] if needs_value else None,
            output_projection=self._projection(taken.layers) if needs_value else None,
            attention_mask=taken.mask,
            statistics=taken.groups,
        )

    def _projection(self, layers: tuple[int, ...]) -> PreparedProjection:
        found = self.stacks.get(layers) or self.used_stacks.get(layers)
        if found is None:
            found = PreparedProjection.together([self.projections[layer] for layer in layers])
        self.used_stacks[layers] = found
        return found

    def _add_rollout(self, layer: int, row: torch.Tensor) -> None:
        """Of the row (B, N) of the rollout down to a layer."""
        layout = self.layout
        if layout.class_token is not None:
            self.batch.values["rollout_on_class_token", layer] = row[:, layout.class_token]
        if layout.registers is not None:
            self.batch.values["rollout_on_registers", layer] = row[:, layout.registers].sum(dim=1)
        self.batch.values["rollout_on_patches", layer] = row[:, layout.patches].sum(dim=1)
        self.batch.values["rollout_entropy", layer] = torch.special.entr(row).sum(dim=1)
        self.batch.maps["rollout", layer] = row.double().sum(dim=0)

    def _of_received(self, taken: Taken, received: torch.Tensor) -> dict[str, torch.Tensor]:
        """What follows from what each token is given, (layers * B, H, N)."""
        together = received.mean(dim=1)  # (layers * B, N)
        patches = self.layout.patches
        outlying = together[:, patches] > OUTLIER  # (layers * B, P)
        count = outlying.sum(dim=1)
        self.batch.add_maps("received", taken, together)
        self.batch.add_maps("outliers", taken, outlying)
        found = {
            "largest_received": received[:, :, patches].amax(dim=2),
            "outliers": count.to(received.dtype),
            "on_outliers": (received[:, :, patches] * outlying[:, None]).sum(dim=2) / received.sum(dim=2),
        }
        if self.contrast is not None:
            contrast = self.contrast.repeat(len(taken.layers), 1)
            found["outlier_contrast"] = (contrast * outlying).sum(dim=1) / count  # 0 / 0: none
        return found


def _median(numbers: torch.Tensor) -> torch.Tensor:
    """Of each row, the mean of the two in the middle: (B, P) -> (B,); torch's is the lower one."""
    in_order, last = numbers.sort(dim=1).values, numbers.shape[1] - 1
    return (in_order[:, last // 2] + in_order[:, -(-last // 2)]) / 2


def patch_contrast(pixel_values: torch.Tensor, layout: TokenLayout) -> torch.Tensor | None:
    """Rank of each patch by the standard deviation of its pixels, from 0 to 1: (B, P); None for a single patch.

    Patches of the same deviation have the mean of their ranks. Where the layout does not know the size of a patch, or
    the image has no room for patches of that size, they are the largest that it has room for.

    Example:

    ```python
    >>> image = torch.tensor([[[[1.0, 1.0, 0.0, 9.0, 0.0, 2.0]]]])
    >>> patch_contrast(image, TokenLayout(grid=(1, 3)))
    tensor([[0.0000, 1.0000, 0.5000]])

    ```
    """
    rows, columns = layout.grid
    largest = pixel_values.shape[-2] // rows, pixel_values.shape[-1] // columns
    height, width = layout.patch_size or largest
    if height > largest[0] or width > largest[1]:
        height, width = largest
    if layout.num_patches < 2 or min(height, width) < 1:
        return None
    cut = pixel_values[..., : rows * height, : columns * width].float()
    patches = cut.unflatten(-1, (columns, width)).unflatten(-3, (rows, height))  # (B, colours, rows, h, columns, w)
    deviations = patches.var(dim=(3, 5), correction=0).mean(dim=1).flatten(1)  # (B, P)
    in_order = deviations.sort(dim=1).values
    fewer = torch.searchsorted(in_order, deviations)  # how many are below; equal ones share the middle of their ranks
    up_to = torch.searchsorted(in_order, deviations, right=True)
    return (fewer + up_to - 1) / (2 * (layout.num_patches - 1))
