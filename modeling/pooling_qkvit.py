"""From tokens to one vector an image.

Shapes: B batch, N tokens, P patches, H heads, D width of a head, C width of the model.
"""

from typing import Any

import torch
from torch import nn

from .layers_qkvit import QKViTMLP
from .normalization_qkvit import make_norm


class QKViTAttentionPooling(nn.Module):
    """A learned query attends over all tokens, then a residual MLP (SigLIP's head, arXiv 2303.15343).

    It is not a layer of the network, so it does not go through the attention interface: what records attention sees
    one call per layer.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.heads = (config.num_attention_heads, config.head_dim)
        inner_size = config.num_attention_heads * config.head_dim
        self.probe = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.q_proj = nn.Linear(config.hidden_size, inner_size)
        self.k_proj = nn.Linear(config.hidden_size, inner_size)
        self.v_proj = nn.Linear(config.hidden_size, inner_size)
        self.o_proj = nn.Linear(inner_size, config.hidden_size)
        self.norm = make_norm(config)
        self.mlp = QKViTMLP(config)

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, C) -> (B, C); tokens where the mask (B, N) is False are not seen."""
        query, key, value = (
            projected.unflatten(-1, self.heads).transpose(1, 2)  # (B, H, 1 or N, D)
            for projected in (
                self.q_proj(self.probe).expand(len(hidden_states), -1, -1),
                self.k_proj(hidden_states),
                self.v_proj(hidden_states),
            )
        )
        mask = None if token_mask is None else token_mask[:, None, None, :]
        pooled = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, 1, D)
        pooled = self.o_proj(pooled.transpose(1, 2).flatten(2))[:, 0]  # (B, C)
        return pooled + self.mlp(self.norm(pooled))


class QKViTPooling(nn.Module):
    """`config.pooling` of the normalised tokens: "class", "mean" of the patches, both, or "attention"."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kind = config.pooling
        self.num_prefix_tokens = config.num_prefix_tokens
        self.attention = QKViTAttentionPooling(config) if config.pooling == "attention" else None

    def forward(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """(B, N, C) -> (B, C), or (B, 2 C) for "class_mean"; patches where the mask (B, N) is False do not count."""
        if self.attention is not None:
            return self.attention(hidden_states, token_mask)
        if self.kind == "class":
            return hidden_states[:, 0]
        mean = self.mean_of_patches(hidden_states, token_mask)
        return mean if self.kind == "mean" else torch.cat([hidden_states[:, 0], mean], dim=-1)

    def mean_of_patches(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        patches = hidden_states[:, self.num_prefix_tokens :]  # (B, P, C)
        if token_mask is None:
            return patches.mean(dim=1)
        weight = token_mask[:, self.num_prefix_tokens :, None].to(patches.dtype)  # (B, P, 1)
        return (patches * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)
