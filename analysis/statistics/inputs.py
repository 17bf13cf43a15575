"""What attention is computed from, checked once.

Shapes: B images, H heads, N tokens, D width of a head, C width of the model.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from ..token_layout import TokenLayout
from .projection import PreparedProjection


@dataclass(frozen=True)
class AttentionInputs:
    """The tensors of one layer's attention.

    Args:
        query, key: (B, H, N, D), as they enter the product: after bias, norm and rotary positions.
        layout: What the tokens are.
        scaling: What the products are multiplied by.
        value: (B, H, N, D_v).
        output_projection: (C, H * D_v), the weight of the linear layer after attention; (layers, C, H * D_v) where
            `prepared` is of several layers.
        output: (B, H, N, D_v), what attention gives before the projection, where it is at hand.
        mask: Broadcasts to (B, H, N, N): True for the keys that a query may see, or numbers added to the scores.
        prepared: The output projection, where more than its weight is at hand.

    Raises:
        ValueError: a shape or data type does not fit, or a query may see no key.
    """

    query: torch.Tensor
    key: torch.Tensor
    layout: TokenLayout
    scaling: float
    value: torch.Tensor | None = None
    output_projection: torch.Tensor | None = None
    output: torch.Tensor | None = None
    mask: torch.Tensor | None = None
    prepared: PreparedProjection | None = None

    def __post_init__(self) -> None:
        check_query_and_key(self.query, self.key)
        self.layout.check(self.query.shape[2])
        if self.value is not None:
            self._check_value(self.value)
        if self.output is not None and (self.value is None or self.output.shape != self.value.shape):
            raise ValueError(
                f"output has the shape {tuple(self.output.shape)}; pass it with a value of the same shape: (images,"
                " heads, tokens, width)"
            )
        if self.output_projection is not None:
            self._check_projection(self.output_projection)
        object.__setattr__(self, "mask", checked_mask(self.mask, self.query))

    @property
    def precise(self) -> torch.dtype:
        """The data type to compute in: float32 at least."""
        return torch.promote_types(self.query.dtype, torch.float32)

    def _check_value(self, value: torch.Tensor) -> None:
        if value.ndim != 4 or value.shape[:3] != self.key.shape[:3]:
            raise ValueError(
                f"value has the shape {tuple(value.shape)}, the key {tuple(self.key.shape)}; pass a value with the"
                " same images, heads and tokens"
            )

    def _check_projection(self, weight: torch.Tensor) -> None:
        if self.value is None:
            raise ValueError("output_projection weighs values, and there are none; pass value= too")
        heads = self.value.shape[1]
        width = heads * self.value.shape[3]
        layers = 1
        if self.prepared is not None and self.prepared.weight.ndim == 3:
            layers, weight = len(weight), weight[0]
        if len(self.value) % layers:
            raise ValueError(
                f"output_projection was prepared for {layers} layers, and the value has {len(self.value)} images; pass"
                " as many of each layer"
            )
        if weight.ndim != 2 or weight.shape[1] != width:
            raise ValueError(
                f"output_projection has the shape {tuple(weight.shape)}, but heads times their width is {width}; pass"
                f" the weight of the linear layer after attention, (width of the model, {width})"
            )
        prepared_heads = heads if self.prepared is None else self.prepared.factors.shape[-3]
        if prepared_heads != heads:
            raise ValueError(
                f"output_projection was prepared for {prepared_heads} heads, and the value has {heads};"
                f" prepare it with num_heads={heads}"
            )


def check_query_and_key(query: torch.Tensor, key: torch.Tensor) -> None:
    """Refuse tensors that are not the queries and keys of the same tokens."""
    if query.ndim != 4 or query.shape != key.shape:
        raise ValueError(
            f"query has the shape {tuple(query.shape)} and key {tuple(key.shape)}; pass two of the same shape (images,"
            " heads, tokens, width of a head)"
        )
    if not query.is_floating_point() or query.dtype != key.dtype:
        raise ValueError(f"query is {query.dtype} and key {key.dtype}; pass two of the same floating-point type")
    if query.device != key.device:
        raise ValueError(f"query is on {query.device} and key on {key.device}; move them to one device")


def checked_mask(mask: torch.Tensor | None, query: torch.Tensor) -> torch.Tensor | None:
    """The mask as four dimensions that broadcast to (B, H, N, N), or None."""
    if mask is None:
        return None
    batch, heads, tokens, _ = query.shape
    fits = mask.ndim == 4 and all(
        size in (1, whole) for size, whole in zip(mask.shape, (batch, heads, tokens, tokens), strict=True)
    )
    if not fits:
        raise ValueError(
            f"attention_mask has the shape {tuple(mask.shape)}, which does not broadcast to"
            f" {(batch, heads, tokens, tokens)}; pass (images or 1, heads or 1, queries or 1, keys)"
        )
    if mask.dtype == torch.bool:
        sees = mask.any(dim=-1)
    elif mask.is_floating_point():
        sees = mask.amax(dim=-1) > hidden_from(mask)
    else:
        raise ValueError(
            f"attention_mask is {mask.dtype}; pass bool (True: may be seen) or numbers to add to the scores"
        )
    if not sees.all():
        raise ValueError("attention_mask leaves a query without any key; let each query see one key at least")
    return mask


def added_mask(mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """The mask (or a piece of it) as numbers to add to the scores: -inf for a key that may not be seen."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    return mask.to(dtype).masked_fill(mask <= hidden_from(mask), -torch.inf)


def hidden_from(mask: torch.Tensor) -> float:
    """Up to this number, a key is hidden: masks are made with the least number of their type as well as with -inf."""
    return torch.finfo(mask.dtype).min / 2


def hides_tokens(mask: torch.Tensor) -> torch.Tensor:
    """Whether a mask of four dimensions hides a key from all queries, as padding is hidden: one boolean.

    Example:

    ```python
    >>> hides_tokens(torch.tensor([[[[True, True, False]]]])), hides_tokens(torch.ones(3, 3).tril().bool()[None, None])
    (tensor(True), tensor(False))

    ```
    """
    hidden = ~mask if mask.dtype == torch.bool else mask <= hidden_from(mask)
    return hidden.all(dim=-2).any()


def piece_of_mask(mask: torch.Tensor, images: slice, heads: slice, queries: slice | torch.Tensor) -> torch.Tensor:
    """The piece of a mask of four dimensions, of which some may be 1; queries as a slice or as indices."""
    for dim, part in enumerate((images, heads, queries)):
        if mask.shape[dim] > 1:
            mask = mask[(slice(None),) * dim + (part,)]
    return mask


def pieces(size: int, step: int) -> Iterator[slice]:
    """Slices that cover 0 to size.

    Example:

    ```python
    >>> list(pieces(5, 2))
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]

    ```
    """
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
