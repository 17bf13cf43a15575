"""LayerNorm or RMSNorm, as the configuration says."""

from typing import Any

from torch import nn


def make_norm(config: Any, size: int | None = None) -> nn.Module:
    """A normalisation over the last dimension: LayerNorm (arXiv 1607.06450) or RMSNorm (arXiv 1910.07467).

    Args:
        size: Width of that dimension; by default the width of the model.
    """
    norm = {"layernorm": nn.LayerNorm, "rmsnorm": nn.RMSNorm}[config.norm_type]
    return norm(size or config.hidden_size, eps=config.layer_norm_eps)
