"""LayerNorm or RMSNorm, as the configuration says."""

from typing import Any

import torch
from torch import nn


class QKViTRMSNorm(nn.RMSNorm):
    """nn.RMSNorm, for an input that autocast has made shorter than the weight: there torch leaves its fused kernel."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def make_norm(config: Any, size: int | None = None) -> nn.Module:
    """A normalisation over the last dimension: LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467).

    Args:
        size: Width of that dimension; by default the width of the model.
    """
    norm = {"layernorm": nn.LayerNorm, "rmsnorm": QKViTRMSNorm}[config.norm_type]
    return norm(size or config.hidden_size, eps=config.layer_norm_eps)
