"""From tokens to one vector an image.

Shapes: B batch, N tokens, P patches, H heads, D width of a head, C width of the model.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN

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
                self.q_proj(self.probe).expand(hidden_states.shape[0], -1, -1),
                self.k_proj(hidden_states),
                self.v_proj(hidden_states),
            )
        )
        mask = None if token_mask is None else token_mask[:, None, None, :]
        pooled = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)  # (B, H, 1, D)
        pooled = self.o_proj(pooled.transpose(1, 2).flatten(2))[:, 0]  # (B, C)
        return pooled + self.mlp(self.norm(pooled))


class QKViTPooling(nn.Module):
    """`config.pooling` of the tokens: "class", "mean" of the patches, both, or "attention"; then the pooler, if any.

    With `norm_position="after_pooling"`, the model's normalisation stands between the two.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.kind = config.pooling
        self.hidden_size = config.hidden_size
        self.first = 0 if config.pools_prefix else config.num_prefix_tokens  # of the tokens that are pooled
        self.attention = QKViTAttentionPooling(config) if config.pooling == "attention" else None
        self.dense = self.activation = None
        if config.pooler_act is not None:
            self.dense = nn.Linear(config.pooled_tokens_size, config.pooled_size)
            self.activation = ACT2FN[config.pooler_act]

    def forward(
        self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None = None, norm: nn.Module | None = None
    ) -> torch.Tensor:
        """(B, N, C) -> (B, `config.pooled_size`); tokens where the mask (B, N) is False do not count.

        Args:
            norm: The normalisation of the pooled tokens.
        """
        pooled = self.pool(hidden_states, token_mask)  # (B, C) or (B, 2 C)
        if norm is not None:
            pooled = norm(pooled.unflatten(-1, (-1, self.hidden_size))).flatten(-2)
        if self.dense is None or self.activation is None:
            return pooled
        return self.activation(self.dense(pooled))

    def pool(self, hidden_states: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, N, C) -> (B, C), or (B, 2 C) for "class_mean"."""
        if self.kind == "class":
            return hidden_states[:, 0]
        covered = hidden_states[:, self.first :]
        mask = None if token_mask is None else token_mask[:, self.first :]
        if self.attention is not None:
            return self.attention(covered, mask)
        mean = self.mean(covered, mask)
        return mean if self.kind == "mean" else torch.cat([hidden_states[:, 0], mean], dim=-1)

    @staticmethod
    def mean(tokens: torch.Tensor, token_mask: torch.Tensor | None) -> torch.Tensor:
        """(B, tokens, C) -> (B, C); 0 where the mask hides all of them."""
        if token_mask is None:
            return tokens.mean(dim=1)
        weight = token_mask.unsqueeze(-1).to(tokens.dtype)  # (B, tokens, 1)
        precise = torch.promote_types(tokens.dtype, torch.float32)  # float16 ends at 65,504
        total, count = ((tokens * weight).sum(dim=1, dtype=precise), weight.sum(dim=1, dtype=precise))
        return (total / count.clamp(min=1)).to(tokens.dtype)
