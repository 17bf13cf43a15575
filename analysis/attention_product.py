"""The attention product step by step: scores, softmax, output, for chosen heads and rows.

Backends of the attention interface never build scores or maps; here they are made from what a backend is given.

Shapes: B batch, H heads, h chosen heads, N query tokens, n chosen query tokens, M key tokens, D width of a head.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

Index = torch.Tensor

# Arguments of a backend that change the product in a way that is not written down here.
_UNKNOWN_PRODUCTS = ("softcap", "s_aux", "sliding_window", "cache", "cu_seq_lens_q", "cu_seq_lens_k")


@dataclass
class AttentionCall:
    """One call of the attention interface: what the backend is given.

    Args:
        module: The attention module that calls.
        query: (B, H, N, D).
        key, value: (B, H, M, D).
        mask: As the backend wants it: None, a tensor (boolean, added to the scores, or the (B, M) of FlashAttention)
            or the BlockMask of FlexAttention.
        arguments: The other keyword arguments.
        number: How many calls of this layer there were before, in the context that asks.
        edited: Which of "scores", "attention" and "output" an edit replaces.
    """

    module: nn.Module
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    mask: Any = None
    arguments: dict[str, Any] = field(default_factory=dict)
    number: int = 0
    edited: tuple[str, ...] = ()

    @property
    def scaling(self) -> float:
        """What the products of query and key are multiplied by."""
        scaling = self.arguments.get("scaling")
        return self.query.shape[-1] ** -0.5 if scaling is None else float(scaling)

    @property
    def drops_weights(self) -> bool:
        """Whether attention dropout is at work: the output is then not that of the map."""
        return self.module.training and self.arguments.get("dropout", 0.0) > 0

    @property
    def other_map(self) -> str | None:
        """Why the map is not softmax(scaling * Q K^T + mask), as a sentence; `None`: it is."""
        if unknown := self._unknown():
            return unknown
        maps = " and ".join(name for name in self.edited if name != "output")
        if not maps:
            return None
        return (
            f"an edit replaces the {maps}, and statistics and rollout are computed from query and key; inside the edit,"
            ' record(model, tensors="attention") has the maps that are left'
        )

    def scores(self, heads: Index | None = None, rows: Index | None = None) -> torch.Tensor:
        """scaling * Q K^T without the mask, in float32 at least: (B, h, n, M).

        Only the chosen heads and rows are computed: one row costs O(M * D), not O(N * M).
        """
        if unknown := self._unknown():
            raise ValueError(unknown)
        query, key = (
            take(take(self.query, heads, 1), rows, 2),
            take(of_all_heads(self.key, self.query.shape[1]), heads, 1),
        )
        precise = torch.promote_types(query.dtype, torch.float32)  # 16-bit scores overflow where fused kernels do not
        with torch.autocast(query.device.type, enabled=False):
            return query.to(precise) * self.scaling @ key.to(precise).transpose(-1, -2)

    def masked(self, scores: torch.Tensor, heads: Index | None = None, rows: Index | None = None) -> torch.Tensor:
        """The scores as they enter the softmax: a position bias added, hidden keys at the least number."""
        mask = self.plain_mask()()
        if mask is None:
            return scores
        mask = piece(mask, heads, rows)[..., : scores.shape[-1]]
        if mask.dtype == torch.bool:
            return scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores + mask.to(scores.dtype)

    def weights(self, masked_scores: torch.Tensor) -> torch.Tensor:
        """The attention map, softmax of the masked scores, in the data type of the query: its rows sum to 1."""
        return masked_scores.softmax(dim=-1).to(self.query.dtype)

    def output(self, weights: torch.Tensor) -> torch.Tensor:
        """dropout(P) V: (B, H, N, D)."""
        dropped = nn.functional.dropout(weights, self.arguments.get("dropout", 0.0), self.module.training)
        return dropped.to(self.value.dtype) @ of_all_heads(self.value, self.query.shape[1])

    def plain_mask(self) -> Callable[[], torch.Tensor | None]:
        """Makes the mask as a tensor of four dimensions: boolean (True: may be seen), or added to the scores."""
        causal = self.arguments.get("is_causal")
        causal = bool(getattr(self.module, "is_causal", False) if causal is None else causal)
        sizes = (self.query.shape[2], self.key.shape[2])
        return partial(_plain_mask, self.mask, self.arguments.get("position_bias"), causal, sizes, self.query.device)

    def _unknown(self) -> str | None:
        for name in _UNKNOWN_PRODUCTS:
            if self.arguments.get(name) is not None:
                return (
                    f"{type(self.module).__name__} computes attention with {name}, for which scores and maps are not"
                    " known here; record or edit query, key, value or output alone"
                )
        return None


def _plain_mask(
    mask: Any, bias: torch.Tensor | None, causal: bool, sizes: tuple[int, int], device: torch.device
) -> torch.Tensor | None:
    if mask is None and causal and sizes[0] > 1:
        mask = torch.ones(sizes, dtype=torch.bool, device=device).tril()[None, None]
    elif mask is not None and not isinstance(mask, torch.Tensor):
        from torch.nn.attention.flex_attention import create_mask

        batch, heads = mask.shape[:2]  # 1 where it is the same for all
        mask = create_mask(mask.mask_mod, batch, heads, *sizes, device=str(device)).bool()
    elif mask is not None and mask.ndim == 2:  # (B, M), as FlashAttention takes it: 1 where a key may be seen
        mask = mask.bool()[:, None, None]
    if mask is None or bias is None:
        return bias if mask is None else mask
    return bias.masked_fill(~mask, torch.finfo(bias.dtype).min) if mask.dtype == torch.bool else bias + mask


def of_all_heads(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values (B, G, M, D) for each of the query heads, where several share them (grouped-query attention)."""
    return tensor if tensor.shape[1] == heads else tensor.repeat_interleave(heads // tensor.shape[1], dim=1)


def take(tensor: torch.Tensor, index: Index | None, dim: int) -> torch.Tensor:
    """The chosen entries of one dimension, which stays; None takes all of them."""
    return tensor if index is None else tensor.index_select(dim, index.to(tensor.device))


def piece(tensor: torch.Tensor, heads: Index | None, rows: Index | None) -> torch.Tensor:
    """The chosen heads and rows of something that broadcasts to (B, H, N, M)."""
    for dim, index in ((1, heads), (2, rows)):
        if tensor.shape[dim] > 1:
            tensor = take(tensor, index, dim)
    return tensor
