"""The control of every statistic: the same model with random weights."""

import copy
from typing import Any

import torch

# What other models give more dimensions; of one dimension else are biases, norms and LayerScale.
TOKENS_IN_ONE_DIMENSION = ("class_embedding", "cls_token")


@torch.no_grad()
def with_random_weights(model: Any, seed: int = 0) -> Any:
    """A copy of a model whose weights are noise of the same scale.

    Every parameter with two dimensions or more (projections, patches, tokens, positions), and a class token of one, is
    drawn from a normal distribution with mean 0 and its own standard deviation; biases, norms and LayerScale stay as
    they are. So what a head still does comes from the architecture and from the scale of the weights, not from what
    was learned (Adebayo et al. 2018, arXiv 1810.03292).

    Args:
        model: Any torch module.
        seed: Of the noise; the same on every device and in every process.

    Example:

    ```python
    >>> linear = torch.nn.Linear(64, 64)
    >>> noise = with_random_weights(linear)
    >>> torch.equal(noise.weight, linear.weight), torch.equal(noise.bias, linear.bias)
    (False, True)
    >>> torch.testing.assert_close(noise.weight.std(), linear.weight.std(), rtol=0.05, atol=0)

    ```
    """
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in noisy.named_parameters():
        if parameter.ndim >= 2 or name.rpartition(".")[2] in TOKENS_IN_ONE_DIMENSION:
            drawn = torch.randn(parameter.shape, generator=generator)
            deviation = parameter.float().std(correction=0)
            parameter.copy_(drawn.to(parameter.device) * deviation)
    return noisy
