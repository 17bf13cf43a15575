"""The statistics in one pass over tiles of queries: exact, without an N x N tensor.

A tile holds a few queries and all keys, so that its rows are complete and what is summed over queries is summed tile by
tile. One or two buffers of a tile are all that grows with N beside the inputs and the results.

Shapes: B images, H heads, N tokens, P patches, X tokens before them, D width of a head; g images times heads and
t queries of a tile.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from . import fused_cpu
from . import tile as tiles
from .grid import grid_of
from .inputs import AttentionInputs, added_mask, piece_of_mask, pieces
from .precision import full_precision
from .values import norms_and_shares, projected_norms


class Plan(NamedTuple):
    """How large a tile is."""

    images: int
    heads: int
    queries: int


def cpu_plan(inputs: AttentionInputs, groups: frozenset[str]) -> Plan:
    """A tile that a core's cache holds, or several images where they are small."""
    batch, heads, tokens, _ = inputs.query.shape
    plan = plan_for(heads, tokens, numbers=CPU_NUMBERS, all_heads="similarity" in groups)
    of_image = heads * tokens * tokens
    if 4 * of_image > CPU_NUMBERS or plan.heads < heads:
        return plan
    # More would leave the caches; with fewer, cores wait between them.
    return Plan(max(1, min(batch, 2 * CPU_NUMBERS // max(of_image, 1))), heads, tokens)


def gpu_plan(inputs: AttentionInputs, groups: frozenset[str]) -> Plan:
    """A tile that fills the device: its two buffers are 256 MB in float32."""
    batch, heads, tokens, _ = inputs.query.shape
    images = max(1, min(batch, GPU_NUMBERS // (heads * tokens * tokens)))
    return Plan(images, heads, max(1, min(tokens, GPU_NUMBERS // (images * heads * tokens))))


CPU_NUMBERS, GPU_NUMBERS = 2**20, 2**25
FEWEST_QUERIES = 64


def numbers_for(device: torch.device) -> int:
    """How many numbers a tile may have."""
    return CPU_NUMBERS if device.type == "cpu" else GPU_NUMBERS


def plan_for(heads: int, tokens: int, numbers: int, all_heads: bool) -> Plan:
    """A tile of about `numbers` numbers, with fewer heads rather than fewer than 64 queries."""
    if not all_heads:
        heads = max(1, min(heads, numbers // (min(FEWEST_QUERIES, tokens) * tokens)))
    queries = max(numbers // (heads * tokens), 16)
    pieces = -(-tokens // queries)
    return Plan(1, heads, -(-tokens // pieces))


def blockwise_statistics(inputs: AttentionInputs, groups: frozenset[str], plan: Plan) -> dict[str, torch.Tensor]:
    """The fields of `groups`, as `reference_statistics` gives them, without its memory."""
    with full_precision(inputs.query.device):
        return _Pass(inputs, groups, plan).run()


@dataclass
class _Block:
    """Some images and heads, made ready."""

    images: slice
    heads: slice
    query: torch.Tensor  # (g, N, D)
    patch_keys: torch.Tensor  # (g, D, P)
    prefix_keys: torch.Tensor  # (g, D, X)
    value: torch.Tensor | None  # (g, N, D)
    value_norm: torch.Tensor | None  # (g, N)


class _Pass:
    """One pass over all tiles, with its results."""

    def __init__(self, inputs: AttentionInputs, groups: frozenset[str], plan: Plan) -> None:
        self.inputs, self.groups, self.plan = inputs, groups, plan
        self.grid = grid_of(inputs.layout, inputs.query.device, inputs.precise)
        self.results: dict[str, torch.Tensor] = {}
        self.norms: torch.Tensor | None = None
        self.outputs: torch.Tensor | None = None
        self.makes_outputs = False
        if "values" in groups:
            assert inputs.value is not None
            self.norms = projected_norms(inputs.value.to(inputs.precise), inputs.output_projection, inputs.prepared)
            self.makes_outputs = inputs.output is None or inputs.output.dtype != inputs.precise
            self.outputs = self.norms.new_empty(inputs.value.shape) if self.makes_outputs else inputs.output
            self.results["value_norm"] = self.norms
        heads = inputs.query.shape[1]
        is_dense = plan.images == 1 or plan.heads >= heads  # the kernels write to planes that follow each other
        self.is_compiled = is_dense and fused_cpu.suits(inputs.precise, inputs.query.device, heads)
        if self.is_compiled:
            self.results |= fused_cpu.room_for(groups, inputs.layout, inputs.query)
        size = plan.images * plan.heads * plan.queries * inputs.layout.num_patches
        buffers = 1 if self.is_compiled else 2
        self.buffers = [torch.empty(size, dtype=inputs.precise, device=inputs.query.device) for _ in range(buffers)]

    def run(self) -> dict[str, torch.Tensor]:
        batch, heads, tokens, _ = self.inputs.query.shape
        for images in pieces(batch, self.plan.images):
            for some_heads in pieces(heads, self.plan.heads):
                block = self._block(images, some_heads)
                for queries in pieces(tokens, self.plan.queries):
                    self._tile(block, queries)
        if self.outputs is not None:
            norms, shares = norms_and_shares(self.outputs, self.inputs.output_projection, self.inputs.prepared)
            self.results |= {"output_norm": norms, "output_share": shares}
        return self.results

    def _block(self, images: slice, heads: slice) -> _Block:
        inputs = self.inputs
        query, key = (part[images, heads].to(inputs.precise).flatten(0, 1) for part in (inputs.query, inputs.key))
        value = norms = None
        if self.norms is not None and inputs.value is not None:
            value = inputs.value[images, heads].to(inputs.precise).flatten(0, 1)
            norms = self.norms[images, heads].flatten(0, 1)
        keys = key.transpose(1, 2)  # (g, D, N)
        prefix = self.grid.prefix
        return _Block(images, heads, query, keys[..., prefix:], keys[..., :prefix], value, norms)

    def _tile(self, block: _Block, queries: slice) -> None:
        if self.is_compiled:
            attention = self._compiled(block, queries)
        else:
            attention, inverse_sum = self._rows(block, queries)
            self._columns(block, attention, inverse_sum)
            if "similarity" in self.groups:
                heads = len(attention.weights) // self._images(block)
                self._add("products", tiles.products_of_heads(attention, heads), block.images)
        if self.makes_outputs:
            assert block.value is not None
            assert self.outputs is not None
            at = (block.images, block.heads, queries)
            self.outputs[at] = tiles.outputs(attention, block.value).view(self.outputs[at].shape)
        if "mean_map" in self.groups and not self.is_compiled:
            self._add_map(block, queries, attention)  # the last to read the weights

    def _compiled(self, block: _Block, queries: slice) -> tiles.Attention:
        """As `_rows` and what is summed over them, by the kernels in C."""
        query = block.query[:, queries]
        [scores] = self._room(query)
        mask, scaling = self._mask(block, queries), self.inputs.scaling
        prefix_scores = tiles.score(query, block.patch_keys, block.prefix_keys, mask, scaling, scores)
        at = (block.images, block.heads, queries, self.inputs.query.shape[1])
        norms, keeps_weights = block.value_norm, self.makes_outputs
        return fused_cpu.read_rows(scores, prefix_scores, self.grid, *at, norms, self.results, keeps_weights)

    def _rows(self, block: _Block, queries: slice) -> tuple[tiles.Attention, torch.Tensor | None]:
        """Read some rows. Returns their attention, and 1 / sum_j p_ij ||v_j W||, (g, t), where there are values."""
        query = block.query[:, queries]
        mask = self._mask(block, queries)
        keys, scaling = (block.patch_keys, block.prefix_keys), self.inputs.scaling
        tile = tiles.attend(query, *keys, mask, self.grid, queries, scaling, *self._room(query))
        lines = None
        if "entropy" in self.groups:
            of_rows, lines = tiles.entropy(tile)
            self._write(block, queries, entropy=of_rows)
        if "maximum" in self.groups:
            largest, token = tiles.maximum(tile)
            self._write(block, queries, maximum=largest, argmaximum=token)
        if "place" in self.groups:
            centre, spread = tiles.place(tile, lines)
            self._write(block, queries, centre=centre, spread=spread)
        if "masses" in self.groups:
            self._write(block, queries, **self._masses("on", tile.prefix, tile.on_patches, tiles.on_self(tile)))
            self._write(block, queries, on_neighbours=tiles.on_neighbours(tile))
        if "distance" in self.groups:
            self._write(block, queries, distance=tiles.distance(tile, self.grid.distances(queries)))
        return tile, self._values(block, tile) if block.value_norm is not None else None

    def _room(self, query: torch.Tensor) -> list[torch.Tensor]:
        """For numbers (g, t, P)."""
        shape = (*query.shape[:2], self.inputs.layout.num_patches)
        return [buffer[: shape[0] * shape[1] * shape[2]].view(shape) for buffer in self.buffers]

    def _images(self, block: _Block) -> int:
        return block.images.stop - block.images.start

    def _mask(self, block: _Block, queries: slice) -> torch.Tensor | None:
        """(g, t, N), to be added."""
        if self.inputs.mask is None:
            return None
        piece = added_mask(piece_of_mask(self.inputs.mask, block.images, block.heads, queries), self.inputs.precise)
        images, heads = self._images(block), block.heads.stop - block.heads.start
        return piece.expand(images, heads, -1, -1).flatten(0, 1)

    def _masses(
        self, stem: str, prefix: torch.Tensor, on_patches: torch.Tensor, on_self: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Sums over the kinds of tokens, from the weights (g, t, X) of those before the patches."""
        masses = {f"{stem}_prefix": prefix.sum(dim=-1), f"{stem}_patches": on_patches, f"{stem}_self": on_self}
        if self.inputs.layout.class_token is not None:
            masses[f"{stem}_class_token"] = prefix[..., self.inputs.layout.class_token]
        if self.grid.layout.registers is not None:
            masses[f"{stem}_registers"] = prefix[..., self.grid.layout.registers].sum(dim=-1)
        return masses

    def _values(self, block: _Block, tile: tiles.Tile) -> torch.Tensor:
        """Norm-weighted sums. Returns 1 / sum_j p_ij ||v_j W||: (g, t)."""
        assert block.value_norm is not None
        norms, first = block.value_norm[:, None], self.grid.prefix  # (g, 1, N)
        of_patches = torch.bmm(tile.weights, norms[..., first:].transpose(1, 2))[..., 0] * tile.on_patches
        of_prefix = tile.prefix * norms[..., :first]  # (g, t, X)
        total = of_patches + of_prefix.sum(dim=-1)
        own = tiles.on_self(tile) * block.value_norm[:, tile.tokens]
        shares = self._masses("weighted_on", of_prefix / total[..., None], of_patches / total, own / total)
        self._write(block, tile.tokens, weighted_sum=total, **shares)
        return 1 / total

    def _columns(self, block: _Block, attention: tiles.Attention, inverse_sum: torch.Tensor | None) -> None:
        """What is summed over queries."""
        row_weights = []
        if "received" in self.groups:
            row_weights.append(torch.ones_like(attention.on_patches))
        if inverse_sum is not None:
            row_weights.append(inverse_sum)
        if not row_weights:
            return
        sums = list(tiles.column_sums(attention, torch.stack(row_weights, dim=1)).unbind(dim=1))  # (g, N) each
        if "received" in self.groups:
            self._add("received", sums.pop(0), block.images, block.heads)
        if inverse_sum is not None:
            assert block.value_norm is not None
            self._add("weighted_received", sums.pop() * block.value_norm, block.images, block.heads)

    def _add_map(self, block: _Block, queries: slice, attention: tiles.Attention) -> None:
        batch, heads, tokens, _ = self.inputs.query.shape
        if "mean_map" not in self.results:
            self.results["mean_map"] = attention.weights.new_zeros(batch, tokens, tokens)
        some_heads = block.heads.stop - block.heads.start
        self.results["mean_map"][block.images, queries] += tiles.mean_over_heads(attention, some_heads, heads)

    def _write(self, block: _Block, queries: slice, **of_rows: torch.Tensor) -> None:
        """Put numbers (g, t, ...) into results (B, H, N, ...)."""
        for name, numbers in of_rows.items():
            if name not in self.results:
                self.results[name] = numbers.new_empty(*self.inputs.query.shape[:3], *numbers.shape[2:])
            place = self.results[name][block.images, block.heads, queries]
            place.copy_(numbers.view(place.shape))

    def _add(self, name: str, numbers: torch.Tensor, images: slice, heads: slice | None = None) -> None:
        """Add numbers (g, ...) to results (B, H, ...), or (B, ...) without heads."""
        batch, all_heads = self.inputs.query.shape[:2]
        shape = (batch, *numbers.shape[1:]) if heads is None else (batch, all_heads, *numbers.shape[1:])
        if name not in self.results:
            self.results[name] = numbers.new_zeros(shape)
        place = self.results[name][images] if heads is None else self.results[name][images, heads]
        place += numbers.view(place.shape)
