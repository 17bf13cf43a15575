"""One layer of the transformer: two residual lines, and what stands on them.

Shapes: B batch, N tokens, C width of the model.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention_qkvit import QKViTAttention
from .normalization_qkvit import make_norm
from .precision_qkvit import cast_once
from .shortcuts_qkvit import activate


class QKViTMLP(nn.Module):
    """down(act(up(x))); "swiglu" has a gate: down(act(gate(x)) * up(x)) (Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.mlp_bias)
        self.gate_proj = None
        if config.mlp_type == "swiglu":
            self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.mlp_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.gate_proj is None:
            return self.down_proj(activate(self.activation, self.up_proj, hidden_states))
        hidden_states = cast_once(hidden_states)
        gate = activate(self.activation, self.gate_proj, hidden_states)
        return self.down_proj(gate * self.up_proj(hidden_states))


class QKViTResidual(nn.Module):
    """What happens to a branch before it is added: LayerScale, dropout, stochastic depth; nothing where all are off."""

    def __init__(self, config: Any, drop_path_rate: float) -> None:
        super().__init__()
        self.drop_path_rate = drop_path_rate
        self.dropout_prob = config.hidden_dropout_prob
        self.layer_scale_init_value = config.layer_scale_init_value
        self.layer_scale = None
        if config.layer_scale_init_value is not None:
            self.layer_scale = nn.Parameter(torch.full((config.hidden_size,), float(config.layer_scale_init_value)))

    def forward(self, branch: torch.Tensor) -> torch.Tensor:
        if self.layer_scale is not None:
            branch = branch * self.layer_scale
        if self.training and self.dropout_prob:
            branch = nn.functional.dropout(branch, self.dropout_prob)
        if self.training and self.drop_path_rate:
            keep = 1 - self.drop_path_rate
            # The kept samples are scaled up, so that the mean is that of the whole network (arXiv 1603.09382).
            branch = branch * branch.new_empty(branch.shape[0], 1, 1).bernoulli_(keep).div_(keep)
        return branch


class QKViTLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__()
        drop_path_rate = config.drop_path_rate * layer_idx / max(1, config.num_hidden_layers - 1)
        self.attention_norm = make_norm(config)
        self.attention = QKViTAttention(config, layer_idx)
        self.attention_residual = QKViTResidual(config, drop_path_rate)
        self.mlp_norm = make_norm(config)
        self.mlp = QKViTMLP(config)
        self.mlp_residual = QKViTResidual(config, drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor, torch.Tensor]:
        """(B, N, C) -> (B, N, C), with the map and Q, K, V of `QKViTAttention.forward`, which takes `kwargs`."""
        attended, weights, query, key, value = self.attention(self.attention_norm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.attention_residual(attended)
        hidden_states = hidden_states + self.mlp_residual(self.mlp(self.mlp_norm(hidden_states)))
        return hidden_states, weights, query, key, value  # flat: reentrant checkpointing finds no tensors in a tuple
