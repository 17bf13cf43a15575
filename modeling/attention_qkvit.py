"""Multi-head self-attention, softmax(scaling * Q K^T) V, with Q, K, V and the attention maps as outputs.

Shapes: B batch, H heads, N tokens, D width of a head, C width of the model.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .normalization_qkvit import make_norm
from .positions_qkvit import Rotation, rotate_patches
from .shortcuts_qkvit import Neighbours, attend, places_of


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference: every other implementation of the attention interface computes this, faster.

    Args:
        query, key, value: (B, H, N, D).
        attention_mask: (B, 1, N, N), added to the scores; `None` where every token may see every other.

    Returns:
        The output (B, N, H, D) and the attention map (B, H, N, N), before dropout: its rows sum to 1.
    """
    scores = query @ key.transpose(-1, -2) * scaling  # (B, H, N, N)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(query.dtype)
    output = nn.functional.dropout(weights, dropout, module.training) @ value  # (B, H, N, D)
    return output.transpose(1, 2).contiguous(), weights


@torch.no_grad()
def attention_map(
    query: torch.Tensor, key: torch.Tensor, scaling: float, token_mask: torch.Tensor | None = None
) -> torch.Tensor:
    """The attention map beside a backend that never builds it: softmax(scaling * Q K^T), no gradients.

    Args:
        query, key: (B, H, N, D), as they enter attention.
        token_mask: (B, N), True for the tokens that may be attended to.

    Returns:
        (B, H, N queries, N keys), in the data type of the query; computed in float32 at least.

    Example:

    ```python
    >>> query, key = torch.zeros(1, 2, 4, 8), torch.ones(1, 2, 4, 8)
    >>> attention_map(query, key, scaling=8**-0.5)[0, 0, 0]
    tensor([0.2500, 0.2500, 0.2500, 0.2500])

    ```
    """
    precise = torch.promote_types(query.dtype, torch.float32)  # scores of 16 bits overflow where fused kernels do not
    device = query.device.type
    with nullcontext() if device == "meta" else torch.autocast(device, enabled=False):  # "meta" has no autocast
        scores = query.to(precise) * scaling @ key.to(precise).transpose(-1, -2)  # (B, H, N, N)
    if token_mask is not None:
        scores = scores.masked_fill(~token_mask[:, None, None, :], torch.finfo(precise).min)
    return scores.softmax(dim=-1).to(query.dtype)


class QKViTAttention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, arXiv 1706.03762) with one projection each for Q, K, V and O."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_attention_heads = config.num_attention_heads
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.num_key_value_groups = 1  # each head has keys and values of its own; implementations ask for it
        inner_size = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, inner_size, bias=config.query_bias)
        self.k_proj = nn.Linear(config.hidden_size, inner_size, bias=config.key_bias)
        self.v_proj = nn.Linear(config.hidden_size, inner_size, bias=config.value_bias)
        self.o_proj = nn.Linear(inner_size, config.hidden_size, bias=config.output_bias)
        self.neighbours = Neighbours()
        self.q_norm = make_norm(config, config.head_dim) if config.qk_norm else None
        self.k_norm = make_norm(config, config.head_dim) if config.qk_norm else None

    def settle(self) -> None:
        """Lay the weights of `q_proj`, `k_proj` and `v_proj` next to each other: one product in inference."""
        self.neighbours.settle(self.q_proj, self.k_proj, self.v_proj)

    def _apply(self, fn: Callable, recurse: bool = True) -> Any:
        before = places_of(self.q_proj, self.k_proj, self.v_proj)
        moved = super()._apply(fn, recurse)
        # `model.to(...)`, `model.half()`: the weights have new places. Where they have their old ones, others may own
        # the memory, such as the buffers of an optimizer that is spread over processes.
        if before is None or places_of(self.q_proj, self.k_proj, self.v_proj) != before:
            self.settle()
        return moved

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: Any = None,
        rotation: Rotation | None = None,
        token_mask: torch.Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Attend from every token to every token.

        Args:
            hidden_states: (B, N, C).
            attention_mask: As the implementation in use wants it (`create_bidirectional_mask`).
            rotation: Rotary positions of the patches.
            token_mask: (B, N), the same mask in its plain form, for the map.
            output_attentions: Whether to give the map. It never changes the first output by a bit.

        Returns:
            The output (B, N, C); the map (B, H, N, N) or None; query, key and value (B, H, N, D).
        """
        projections = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = self.neighbours.project(hidden_states, self.num_attention_heads, *projections)
        if self.q_norm is not None and self.k_norm is not None:
            query, key = self.q_norm(query), self.k_norm(key)
        if rotation is not None:
            query, key = rotate_patches(query, rotation), rotate_patches(key, rotation)

        function: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        dropout = self.attention_dropout if self.training else 0.0
        output, weights = attend(function, self, query, key, value, attention_mask, self.scaling, dropout)
        # Implementations that build no map give None there, or (flex_attention on a GPU) a log-sum-exp (B, H, N).
        if output_attentions and (weights is None or weights.ndim != 4):
            weights = attention_map(query, key, self.scaling, token_mask)
        output = self.o_proj(output.flatten(2))  # (B, N, H, D) -> (B, N, C)
        return output, weights if output_attentions else None, query, key, value
