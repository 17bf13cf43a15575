"""`record`: the queries, keys, values, scores, maps and outputs of attention, while a model runs as it always does.

Shapes: B batch, H heads, N tokens, D width of a head.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch

from .attention_door import Session
from .attention_layers import chosen
from .attention_product import AttentionCall, Index, of_all_heads, piece, take
from .replacements import MAPS
from .selection import Selection
from .statistics.groups import Backend, asked_groups
from .token_layout import TokenLayout

if TYPE_CHECKING:
    from .statistics import AttentionStatistics

TENSORS = ("query", "key", "value", "scores", "attention", "output")
_WITH_ROWS = ("query", "scores", "attention", "output")

Reduction = Callable[[torch.Tensor], Any]


class LayerRecord:
    """What was recorded of one call of one layer: an attribute for each tensor that was asked for.

    Attributes:
        query, key, value, scores, attention, output: see `record`.
        scaling: What the products of query and key were multiplied by.
        attention_mask: None, or four dimensions that broadcast to (B, H, N, N): boolean (True: may be seen), or
            numbers that were added to the scores. Of the recorded heads and of all rows.
        other_map: Why the map is not softmax(scaling * Q K^T + mask), as a sentence; `None`: it is.
    """

    def __init__(
        self, layer: int, call: AttentionCall, device: str | torch.device | None = None, heads: Index | None = None
    ) -> None:
        self.layer = layer
        self.scaling = call.scaling
        self.other_map = call.other_map
        self._mask, self._heads = call.plain_mask(), heads
        self._output_is_edited = "output" in call.edited
        self._weights_are_dropped = call.drops_weights
        self._device = device
        self._tensors: dict[str, Any] = {}
        self._copied: Any = None  # an event, while copies from a GPU are on their way

    @property
    def attention_mask(self) -> torch.Tensor | None:
        mask = self._mask()
        mask = mask if mask is None else piece(mask, self._heads, None)
        return mask if mask is None or self._device is None else mask.to(self._device)

    def statistics(
        self,
        layout: TokenLayout,
        statistics: str | Iterable[str] | None = None,
        *,
        output_projection: Any = None,
        backend: Backend | None = None,
    ) -> "AttentionStatistics":
        """`attention_statistics` of what was recorded: with its scaling and mask, and its values where there are any.

        Args:
            layout: What the tokens are.
            statistics, output_projection, backend: As `attention_statistics` takes them.

        Raises:
            AttributeError: query or key was not recorded.
            ValueError: what `attention_statistics` refuses, single rows too; the map is not that of query and key
                (`other_map`); or the output is edited and was not recorded.

        Example:

        ```python
        >>> from qkvit import QKViTConfig, QKViTModel
        >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
        >>> model = QKViTModel(config).eval()
        >>> with record(model) as recording:
        ...     _ = model(torch.rand(1, 3, 32, 32))
        >>> s = recording[-1].statistics(TokenLayout.from_model(model, 32))
        >>> s.entropy.shape, s.output_share.shape
        (torch.Size([1, 3, 17]), torch.Size([1, 3]))

        ```
        """
        from .statistics import attention_statistics  # which has functions that record

        if self.other_map is not None:
            raise ValueError(f"layer {self.layer}: {self.other_map}")
        given = {"query": self.query, "key": self.key}
        # After dropout the output is not that of the map.
        use_output = self._output_is_edited or not self._weights_are_dropped
        names = ("value", "output") if use_output else ("value",)
        given |= {name: self._tensors[name] for name in names if name in self._tensors}
        for name, tensor in given.items():
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(
                    f"the {name} of layer {self.layer} was reduced to a {type(tensor).__name__}: record it whole"
                )
        heads = self.query.shape[1]
        given |= {name: of_all_heads(given[name], heads) for name in ("key", "value") if name in given}
        if self._output_is_edited and "value" in given and "values" in asked_groups(statistics, has_value=True):
            if "output" not in given:
                raise ValueError(
                    f"an edit replaces the output of layer {self.layer}: record it too, or leave out the statistics"
                    ' "values"'
                )
            # One of 16 bits would be computed anew, without the edit.
            given["output"] = self.output.to(torch.promote_types(self.output.dtype, torch.float32))
        return attention_statistics(
            **given,
            layout=layout,
            scaling=self.scaling,
            output_projection=output_projection,
            attention_mask=self.attention_mask,
            statistics=statistics,
            backend=backend,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Which tensors there are."""
        return tuple(self._tensors)

    def __getattr__(self, name: str) -> Any:
        tensors = self.__dict__.get("_tensors", {})
        if name in tensors:
            if self._copied is not None:
                self._copied.synchronize()
                self._copied = None
            return tensors[name]
        if name in TENSORS:
            raise AttributeError(
                f"the {name} of layer {self.layer} was not recorded; ask for it: record(model, tensors=({name!r},))"
            )
        raise AttributeError(f"a record has no {name!r}; its tensors are {', '.join(tensors)}")

    def __repr__(self) -> str:
        shown = ", ".join(
            f"{name}={tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__}"
            for name, value in self._tensors.items()
        )
        return f"LayerRecord(layer={self.layer}, {shown})"


class Recording:
    """What `record` recorded, layer by layer; it stays readable after the context.

    `recording[layer]` is the layer's last call (negative layers count from the end), `recording.calls[layer]` the list
    of all that were kept, and iterating gives the layers' numbers.
    """

    def __init__(self, layers: Iterable[int], model_layers: Mapping[int, Any], model_name: str) -> None:
        self.calls: dict[int, list[LayerRecord]] = {layer: [] for layer in layers}
        self._model_layers = dict.fromkeys(model_layers)
        self._model_name = model_name

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that are recorded."""
        return tuple(self.calls)

    def __getitem__(self, layer: int) -> LayerRecord:
        numbers = chosen(layer, self._model_layers, what="recording[...]: layer")
        if len(numbers) > 1:
            raise ValueError(f"recording[{layer!r}] asks for several layers; take one after the other: recording[0]")
        number = numbers[0]
        if number not in self.calls:
            raise ValueError(
                f"layer {number} was not asked for; recorded are the layers {', '.join(map(str, self.calls))}"
            )
        if not self.calls[number]:
            raise ValueError(
                f"layer {number} of {self._model_name} was not reached; run the model inside the context, as it was"
                " before torch.compile, export or tracing"
            )
        return self.calls[number][-1]

    def __iter__(self) -> Iterator[int]:
        return iter(self.calls)

    def __len__(self) -> int:
        return len(self.calls)

    def __repr__(self) -> str:
        return f"Recording(of {self._model_name}, layers {', '.join(map(str, self.calls))})"


def record(
    model: Any,
    layers: int | Iterable[int] | None = None,
    tensors: str | Iterable[str] = ("query", "key", "value"),
    *,
    heads: Any = None,
    queries: Any = None,
    device: str | torch.device | None = None,
    detach: bool = True,
    explicit: bool = False,
    reduce: Reduction | Mapping[str, Reduction] | None = None,
    keep: Literal["last", "all"] = "last",
) -> AbstractContextManager[Recording]:
    """Record attention tensors of every forward pass inside the context.

    The model computes exactly what it computes without: the same backend, the same numbers to the bit. Scores and maps
    are computed beside it, for the asked layers, heads and rows alone.

    | tensor | what it is | shape |
    |---|---|---|
    | query, key, value | as they enter the product: after bias, QK-norm and rotary positions | (B, H, N, D) |
    | scores | S = scaling * Q K^T + mask, as they enter the softmax; in float32 at least | (B, H, N, N) |
    | attention | P = softmax(S), before dropout; in the data type of the query | (B, H, N, N) |
    | output | the heads' output P V of the backend, before the output projection | (B, H, N, D) |

    Inside `intervene`, in whichever order the contexts are entered, what is recorded is what is left after the edits.

    Args:
        model: QKViT or any transformers model whose attention goes through `transformers.AttentionInterface`; also
            wrapped in DistributedDataParallel, or a Trainer. Of CLIP and the like, the vision tower.
        layers: Layer numbers, negative ones from the end. `None`: all.
        tensors: One name of the table or several.
        heads: Which heads to keep: an index, a slice, several indices. `None`: all. The dimension stays.
        queries: Which query tokens (rows of query, scores, attention and output) to keep, likewise. A row of a map
            costs what a row costs: the map is not computed.
        device: Where to put them, and the mask. `None`: where they are. "cpu" copies without waiting for the GPU;
            reading a record waits for its copies.
        detach: Without gradients. With False, query, key, value and output are tensors of the computation, for
            `torch.autograd.grad` or `retain_grad`, and scores and attention functions of them in the graph: a loss may
            contain them.
        explicit: Let the chosen layers compute softmax(S) V step by step, so that a loss has gradients *with respect
            to* scores and attention. It needs `detach=False`; outputs then agree within rounding, not to the bit.
        reduce: A function of a tensor, or one for each name: what it gives is kept in the tensor's place. It is called
            in the forward pass, after heads and rows are chosen.
        keep: After several forward passes, the "last" one alone, or "all": `recording.calls[layer]` is the list of
            calls. A layer that is called several times in one pass, as for each image of its own size, needs "all".

    Returns:
        A context manager that gives a `Recording`: `recording[layer].query`.

    Raises:
        ValueError: a layer, head, row or name does not exist, the model's attention does not go through the interface,
            the model is compiled, or a layer is called several times in one forward pass and `keep` is "last".

    A record shares memory with the computation where nothing is selected, reduced or moved: do not write into it. What
    gradient checkpointing computes again is not recorded again. torch.compile: record the model as it was before; its
    compiled twin runs in pieces in other threads meanwhile, and raises there if it was compiled with `fullgraph=True`.

    Example:

    ```python
    >>> from qkvit import QKViTConfig, QKViTModel
    >>> from qkvit.analysis import record
    >>> config = QKViTConfig.from_size("tiny", image_size=32, patch_size=8, num_hidden_layers=2)
    >>> model = QKViTModel(config).eval()
    >>> with torch.no_grad(), record(model, layers=-1, tensors=("key", "attention"), queries=0) as recording:
    ...     _ = model(torch.rand(1, 3, 32, 32))
    >>> recording[-1].key.shape, recording[-1].attention.shape  # all keys; the class token's row of the map
    (torch.Size([1, 3, 17, 64]), torch.Size([1, 3, 1, 17]))

    ```
    """
    return _RecordSession(
        model,
        layers,
        _checked_names(tensors),
        Selection(heads, "heads"),
        Selection(queries, "queries"),
        device,
        detach,
        explicit,
        reduce,
        keep,
    )


class _RecordSession(Session):
    def __init__(
        self,
        model: Any,
        layers: Any,
        names: tuple[str, ...],
        heads: Selection,
        queries: Selection,
        device: Any,
        detach: bool,
        explicit: bool,
        reduce: Any,
        keep: str,
    ) -> None:
        super().__init__(model)
        if keep not in ("last", "all"):
            raise ValueError(f"keep={keep!r} is not known; pass 'last' or 'all'")
        if explicit and (detach or any(it is not None for it in (heads.asked, queries.asked, device, reduce))):
            raise ValueError(
                "explicit=True is for gradients with respect to whole tensors of the computation; pass detach=False and"
                " none of heads, queries, device and reduce"
            )
        self.names, self.heads, self.queries = names, heads, queries
        self.device, self.detach, self.alters, self.keep_all = device, detach, explicit, keep == "all"
        self.reductions = _checked_reductions(reduce, names)
        self.recording = Recording(chosen(layers, self.modules), self.modules, type(self.model).__name__)

    def __enter__(self) -> Recording:
        super().__enter__()
        return self.recording

    def needs_maps(self, layer: int) -> bool:
        return self.alters and layer in self.recording.calls

    def see(self, call: AttentionCall, seen: dict[str, torch.Tensor]) -> None:
        layer = self.layers[call.module]
        calls = self.recording.calls.get(layer)
        if calls is None:
            return
        if self.passes.layers is not None and not self.keep_all:
            if layer in self.passes.layers:
                raise ValueError(
                    f"layer {layer} is called several times in one forward pass, and keep='last' would keep the last"
                    " call alone: pass keep='all'"
                )
            self.passes.layers.add(layer)
        heads = self.heads.index(call.query.shape[1])
        record = LayerRecord(layer, call, self.device, heads)
        with torch.no_grad() if self.detach else nullcontext():
            for name, tensor in self._taken(call, seen, heads):
                record._tensors[name] = self._kept(name, tensor)
        if self.device is not None and call.query.is_cuda:
            record._copied = torch.cuda.current_stream(call.query.device).record_event()
        if not self.keep_all:
            calls.clear()
        calls.append(record)

    def _taken(
        self, call: AttentionCall, seen: dict[str, torch.Tensor], heads: Index | None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """The chosen heads and rows of each tensor."""
        rows = self.queries.index(call.query.shape[2])
        if "scores" in seen:  # computed step by step, perhaps edited
            seen = {**seen, **{name: piece(seen[name], heads, rows) for name in MAPS}}
        elif any(name in self.names for name in MAPS):
            scores = call.masked(call.scores(heads, rows), heads, rows)
            seen = {**seen, "scores": scores}
            if "attention" in self.names:
                seen["attention"] = call.weights(scores)
        for name in self.names:
            if name in MAPS:
                yield name, seen[name]
            else:
                tensor = seen["output"] if name == "output" else getattr(call, name)
                if heads is not None:
                    tensor = of_all_heads(tensor, call.query.shape[1])
                yield name, take(take(tensor, heads, 1), rows if name in _WITH_ROWS else None, 2)

    def _kept(self, name: str, tensor: torch.Tensor) -> Any:
        kept: Any = tensor.detach() if self.detach else tensor
        if name in self.reductions:
            kept = self.reductions[name](kept)
        if self.device is not None and isinstance(kept, torch.Tensor):
            kept = kept.to(self.device, non_blocking=True)
        return kept


def _checked_names(tensors: str | Iterable[str]) -> tuple[str, ...]:
    names = (tensors,) if isinstance(tensors, str) else tuple(tensors)
    for name in names:
        if name not in TENSORS:
            raise ValueError(f"tensors: {name!r} is not known; pass some of {', '.join(TENSORS)}")
    if not names:
        raise ValueError(f"tensors is empty; pass some of {', '.join(TENSORS)}")
    return tuple(dict.fromkeys(names))


def _checked_reductions(reduce: Any, names: tuple[str, ...]) -> dict[str, Reduction]:
    reductions = dict(reduce) if isinstance(reduce, Mapping) else dict.fromkeys(names, reduce) if reduce else {}
    for name, function in reductions.items():
        if name not in names:
            raise ValueError(f"reduce has {name!r}, which is not recorded; pass functions for {', '.join(names)}")
        if not callable(function):
            raise ValueError(f"reduce[{name!r}] is a {type(function).__name__}; pass a function of a tensor")
    return reductions
