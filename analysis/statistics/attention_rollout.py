"""Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928): what a token takes from the input, through all layers.

With A_l the mean over heads of layer l's attention map, the residual connection is taken to carry half of a token on:
R = (A_L + I) / 2 ... (A_1 + I) / 2. One row of R is a row vector r that goes through the layers from the last to the
first, r <- (r A_l + r) / 2, and needs no N x N matrix.

Shapes: L layers, B images, H heads, N tokens, D width of a head; g images times heads, t queries of a tile.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch

from ..attention_layers import attention_layers, see_images, unwrapped
from ..attention_product import of_all_heads
from ..recording import Recording, record
from ..token_layout import TokenLayout
from . import fused_cpu
from .blockwise import numbers_for, plan_for
from .fused_gpu import fused_row_product, row_sums, suits
from .groups import Backend, backend_for
from .inputs import added_mask, check_query_and_key, checked_mask, piece_of_mask, pieces
from .layers_together import LayersTogether, Taken
from .precision import full_precision
from .reference import attention_weights


class _Layer(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    scaling: float
    mask: torch.Tensor | None


@torch.no_grad()
def rollout(
    queries: Recording | Sequence[torch.Tensor],
    keys: Sequence[torch.Tensor] | None = None,
    start: int | torch.Tensor | None = None,
    *,
    layout: TokenLayout | None = None,
    scaling: float | None = None,
    attention_mask: torch.Tensor | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """The share that each token of the input has in a row of the rollout, without an attention map in memory.

    Args:
        queries, keys: (B, H, N, D) of every layer, the first layer first. Or a `Recording` with "query" and "key" of
            all layers alone, which knows scaling and masks too; one of the first layers alone gives the rollout up to
            there.
        start: Which row: the index of a token, or a vector (N,) or (B, N) that weighs the rows. `None`: what `layout`
            says: the class token's row, without one the mean of the patches' rows.
        layout: What the tokens are.
        scaling: What the products of query and key are multiplied by.
        attention_mask: Broadcasts to (B, H, N, N): True for the keys that a query may see, or numbers added to the
            scores.
        backend: "cpu", "gpu" or "reference", as in `attention_statistics`.

    Returns:
        (B, N), in float32 at least. It sums to what `start` sums to, which is 1 for a token's row.

    Raises:
        ValueError: there are no layers, shapes differ, neither `start` nor `layout` says where to start, or a recorded
            layer's map is not that of its query and key (`LayerRecord.other_map`).

    Example:

    ```python
    >>> queries = keys = [torch.zeros(1, 2, 4, 8)] * 2  # two layers, every token looks at every token alike
    >>> rollout(queries, keys, start=0, scaling=8**-0.5)
    tensor([[0.4375, 0.1875, 0.1875, 0.1875]])

    ```
    """
    if isinstance(queries, Recording) and any(it is not None for it in (keys, scaling, attention_mask)):
        raise ValueError(
            "a Recording knows its keys, scaling and masks, and keys=, scaling= or attention_mask= came beside it;"
            " leave them out, and pass the row as start="
        )
    if isinstance(queries, Recording) and sorted(queries.layers) != list(range(len(queries.layers))):
        missing = sorted(set(range(max(queries.layers))) - set(queries.layers))
        raise ValueError(
            f"the recording has no layer {missing[0]}, and a rollout goes through all down to layer 0; record every"
            " layer, or call model_rollout"
        )
    return _rolled_out(_layers(queries, keys, scaling, attention_mask), start, layout, backend)


def _rolled_out(layers: list[_Layer], start: Any, layout: TokenLayout | None, backend: Backend | None) -> torch.Tensor:
    if not layers:
        raise ValueError("there are no layers to roll out; pass the queries and keys of one layer at least")
    *_, row = _rows(layers, start, layout, backend)
    return row


def _rows(
    layers: list[_Layer], start: Any, layout: TokenLayout | None, backend: Backend | None
) -> Iterator[torch.Tensor]:
    """The row (B, N) after each layer, the last layer first."""
    query = layers[-1].query
    row = _start_row(start, layout, (query.shape[0], query.shape[2]), query)
    if any(layer.query.shape[::2] != query.shape[::2] for layer in layers):
        raise ValueError("the layers have other numbers of images or tokens; pass those of one forward pass")
    steps = _steps_of(layers, backend)
    for layer, step in zip(reversed(layers), reversed(steps), strict=True):
        row = (row + step(row)) / 2
        yield row.to(torch.promote_types(layer.query.dtype, torch.float32))


@torch.no_grad()
def map_rollout(
    maps: Sequence[torch.Tensor], start: int | torch.Tensor | None = None, *, layout: TokenLayout | None = None
) -> torch.Tensor:
    """`rollout` from attention maps that are there already: (B, N).

    Args:
        maps: Of every layer, the first layer first: (B, H, N, N), as `output_attentions=True` gives them, or their mean
            over heads, (B, N, N), as `attention_statistics(..., statistics="mean_map")` does.
        start, layout: As in `rollout`.

    Raises:
        ValueError: there are no maps, or none of some layer, shapes differ, or neither `start` nor `layout` says where
            to start.

    Example:

    ```python
    >>> maps = [torch.full((1, 2, 4, 4), 0.25)] * 2  # two layers, every token looks at every token alike
    >>> map_rollout(maps, start=0)
    tensor([[0.4375, 0.1875, 0.1875, 0.1875]])

    ```
    """
    if not len(maps):
        raise ValueError("there are no maps to roll out; pass those of one layer at least")
    missing = [str(layer) for layer, weights in enumerate(maps) if weights is None]
    if missing:
        raise ValueError(
            f"there are no maps of layer {', '.join(missing)}, and a rollout goes through all; ask for all of them:"
            " output_attentions=True"
        )
    *_, row = rows_of_maps(maps, start, layout)
    return row


def rows_of_maps(
    maps: Sequence[torch.Tensor], start: int | torch.Tensor | None, layout: TokenLayout | None
) -> Iterator[torch.Tensor]:
    """The row (B, N) after each layer's map (B, H, N, N) or (B, N, N), the last layer first."""
    batch, tokens = maps[-1].shape[0], maps[-1].shape[-1]
    row = _start_row(start, layout, (batch, tokens), maps[-1])
    for weights in reversed(maps):
        if weights.ndim not in (3, 4) or (len(weights), *weights.shape[-2:]) != (batch, tokens, tokens):
            raise ValueError(
                f"a map has the shape {tuple(weights.shape)}, the last one is of {batch} images and {tokens} tokens;"
                " pass maps of one forward pass, each (images, heads, tokens, tokens) or (images, tokens, tokens)"
            )
        mean = weights if weights.ndim == 3 else weights.mean(dim=1)
        with full_precision(row.device):
            row = (row + (row[:, None] @ mean.to(row.dtype))[:, 0]) / 2
        yield row


@torch.no_grad()
def model_rollout(
    model: Any,
    pixel_values: torch.Tensor,
    start: int | torch.Tensor | None = None,
    *,
    layout: TokenLayout | None = None,
    layers_at_once: int | None = None,
    backend: Backend | None = None,
) -> torch.Tensor:
    """`rollout` of a model for some images: (B, N).

    Args:
        model: QKViT or any transformers model whose attention goes through the attention interface.
        pixel_values: (B, channels, height, width).
        start, layout, backend: As in `rollout`. `layout=None`: `TokenLayout.from_model` for the size of the images.
        layers_at_once: How many layers' queries and keys are kept at once. `None`: all, from one forward pass. With
            fewer, the model runs again, as far as it must, for each group of layers: 4 of 12 layers keep a third of the
            memory and cost one more forward pass in sum. The first run is whole: a `record` around this call sees it.

    Raises:
        ValueError: the model's attention does not go through the interface, or nothing says where to start.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> shares = model_rollout(QKViTModel(config).eval(), torch.rand(1, 3, 32, 32))
    >>> shares.shape, round(shares.sum().item(), 4)
    (torch.Size([1, 17]), 1.0)

    ```
    """
    if start is None and layout is None:
        layout = TokenLayout.from_model(model, (pixel_values.shape[-2], pixel_values.shape[-1]))
    numbers = tuple(attention_layers(unwrapped(model)))
    if layers_at_once is not None and layers_at_once < 1:
        raise ValueError(f"layers_at_once={layers_at_once} keeps no layer; pass 1 or more")
    at_once = layers_at_once or len(numbers)
    *_, (_, row) = rows_by_layer(model, partial(see_images, model, pixel_values), start, layout, at_once, backend)
    return row


def rows_by_layer(
    model: Any,
    run: Callable[[], Any],
    start: int | torch.Tensor | None,
    layout: TokenLayout | None,
    layers_at_once: int,
    backend: Backend | None = None,
) -> Iterator[tuple[int, torch.Tensor]]:
    """Each layer, from the last to the first, and what the row takes from the tokens that enter it: (B, N).

    The first call of `run` runs the whole model, so that a recording around this sees all of it; later calls end early.
    """
    numbers = tuple(attention_layers(unwrapped(model)))
    row: Any = start
    for end in range(len(numbers), 0, -layers_at_once):
        group, behind = numbers[max(0, end - layers_at_once) : end], numbers[end : end + 1]
        # No name for the recording: it would keep one group in memory while the model runs for the next.
        rows = _rows(_layers(_run_to(model, run, group, behind), None, None, None), row, layout, backend)
        for layer, row in zip(reversed(group), rows, strict=True):
            yield layer, row


class _FarEnoughError(Exception):
    """Ends a forward pass whose other layers are not needed."""


def _run_to(model: Any, run: Callable[[], Any], group: tuple[int, ...], behind: tuple[int, ...]) -> Recording:
    """Queries and keys of a group of layers, from a forward pass that ends at the layer `behind` it, where one is."""

    def stop(query: torch.Tensor) -> None:
        raise _FarEnoughError

    end = record(model, layers=behind, tensors="query", reduce=stop) if behind else contextlib.nullcontext()
    kept = record(model, layers=group, tensors=("query", "key"))
    with contextlib.suppress(_FarEnoughError), kept as recording, end:
        run()
    return recording


def _layers(queries: Any, keys: Any, scaling: float | None, mask: torch.Tensor | None) -> list[_Layer]:
    if isinstance(queries, Recording):
        records = [queries[layer] for layer in sorted(queries.layers)]
        for it in records:
            if it.other_map is not None:  # softmax(scaling * Q K^T + mask) would be another map than was computed
                raise ValueError(f"layer {it.layer}: {it.other_map}")
        layers = [
            _Layer(it.query, of_all_heads(it.key, it.query.shape[1]), it.scaling, it.attention_mask) for it in records
        ]
    else:
        if keys is None or scaling is None:
            raise ValueError("rollout needs queries, keys and their scaling; pass all three, or a Recording of both")
        queries, keys = list(queries), list(keys)
        if len(queries) != len(keys):
            raise ValueError(
                f"there are queries of {len(queries)} layers and keys of {len(keys)}; pass one of each a layer"
            )
        layers = [_Layer(query, key, scaling, mask) for query, key in zip(queries, keys, strict=True)]
    for layer in layers:
        check_query_and_key(layer.query, layer.key)
    return [layer._replace(mask=checked_mask(layer.mask, layer.query)) for layer in layers]


def _start_row(
    start: int | torch.Tensor | None, layout: TokenLayout | None, shape: tuple[int, int], like: torch.Tensor
) -> torch.Tensor:
    """(B, N), on the device of `like` and in its data type, float32 at least."""
    batch, tokens = shape
    dtype, device = torch.promote_types(like.dtype, torch.float32), like.device
    if start is None:
        if layout is None:
            raise ValueError(
                "rollout does not know which row is asked for; pass start= (0 for a class token) or layout="
            )
        layout.check(tokens)
        start = layout.class_token
    if isinstance(start, torch.Tensor) and start.ndim > 0:
        if start.shape not in ((tokens,), (batch, tokens)):
            raise ValueError(
                f"start has the shape {tuple(start.shape)}; pass an index, ({tokens},) or {(batch, tokens)}"
            )
        return start.to(device, dtype).expand(batch, tokens)
    row = torch.zeros(batch, tokens, device=device, dtype=dtype)
    if start is None:
        assert layout is not None
        row[:, layout.patches] = 1 / layout.num_patches
        return row
    if not -tokens <= int(start) < tokens:
        raise ValueError(f"start={int(start)} is not one of {tokens} tokens; pass an index from 0 to {tokens - 1}")
    row[:, int(start)] = 1
    return row


def _steps_of(layers: list[_Layer], backend: Backend | None) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """What each layer does to a row: r -> r A."""
    name = backend_for(backend, layers[0].query.device)
    if name == "gpu" and all(suits(layer.query, mask=layer.mask) for layer in layers):
        return _fused_steps(layers)
    step = _reference_step if name == "reference" else _blockwise_step
    return [partial(step, layer) for layer in layers]


def _fused_steps(layers: list[_Layer]) -> list[Callable[[torch.Tensor], torch.Tensor]]:
    """What a step needs of all rows is computed here, for several layers at a time."""
    log_sums: dict[int, torch.Tensor] = {}

    def take(ready: Iterable[Taken]) -> None:
        for taken in ready:
            of_all = row_sums(taken.tensors["query"], taken.tensors["key"], taken.mask, taken.scaling)
            log_sums.update(zip(taken.layers, taken.by_layer(of_all), strict=True))

    together = LayersTogether()
    for place, layer in enumerate(layers):
        tensors = {"query": layer.query, "key": layer.key}
        take(together.add(place, tensors, layer.scaling, layer.mask, frozenset()))
    take(together.flush())
    return [
        partial(fused_row_product, layer.query, layer.key, layer.mask, layer.scaling, log_sums=log_sums[place])
        for place, layer in enumerate(layers)
    ]


def _reference_step(layer: _Layer, row: torch.Tensor) -> torch.Tensor:
    """r A: (B, N), with the maps in memory, in float64."""
    return (row.double()[:, None] @ attention_weights(layer).mean(dim=1))[:, 0]


def _blockwise_step(layer: _Layer, row: torch.Tensor) -> torch.Tensor:
    """r A: (B, N), a few queries at a time. Those of weight 0 in r are left out: most in the last layer."""
    batch, heads, tokens, _ = layer.query.shape
    plan = plan_for(heads, tokens, numbers_for(row.device), all_heads=False)
    is_compiled = fused_cpu.suits(row.dtype, row.device, heads)
    buffers = 1 if is_compiled else 2
    room = [torch.empty(plan.heads * plan.queries * tokens, dtype=row.dtype, device=row.device) for _ in range(buffers)]
    taken = row.new_zeros(row.shape)  # one row after the other, as the kernel writes them
    with full_precision(row.device):
        for image in range(batch):
            asked = row[image].nonzero()[:, 0]
            for some in pieces(heads, plan.heads):
                query = layer.query[image, some].to(row.dtype)  # (g, N, D)
                key = layer.key[image, some].to(row.dtype).transpose(1, 2)  # (g, D, N)
                for piece in pieces(len(asked), plan.queries):
                    part = piece if len(asked) == tokens else asked[piece]  # a slice copies nothing
                    shape = (len(query), piece.stop - piece.start, tokens)
                    scores, *weights = (it[: shape[0] * shape[1] * shape[2]].view(shape) for it in room)
                    torch.baddbmm(scores, query[:, part], key, beta=0, alpha=layer.scaling, out=scores)  # (g, t, N)
                    if layer.mask is not None:
                        mask = piece_of_mask(layer.mask, slice(image, image + 1), some, part)
                        scores += added_mask(mask, row.dtype)[0]
                    if is_compiled:
                        fused_cpu.add_rows(scores, row[image, part], taken[image])
                    else:
                        torch.softmax(scores, dim=-1, out=weights[0])
                        taken[image] += row[image, part].repeat(len(query)) @ weights[0].flatten(0, 1)
    return taken / heads
