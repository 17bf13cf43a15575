"""The gradients of attention on a CPU in bfloat16, by matrix products: torch's kernel is slow where tokens are few.

Up to 730 tokens, output and gradients together are 1.1 to 2.2 times as fast (docs/performance.md).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_FEWEST_WEIGHTS = 2**13  # B * H * N^2. Below, what it costs to call is more than what it saves.
_MOST_TOKENS = 730  # 27 x 27 patches and a class token; above, maps no longer fit into the processor's caches.
_WEIGHTS_AT_ONCE = 2**20  # as many images at a time as have so many weights, or one: 6 MB


def pays_to_multiply(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float) -> bool:
    """Whether the gradients of attention of these, each (B, H, N, D), are `SmallAttention`'s to take."""
    if not (query.is_cpu and query.dtype == torch.bfloat16 and torch.is_grad_enabled()):
        return False
    batch_size, num_heads, num_tokens, _ = query.shape
    return (
        num_tokens <= _MOST_TOKENS
        and batch_size * num_heads * num_tokens**2 >= _FEWEST_WEIGHTS
        and mask is None
        and dropout == 0
        and type(query) is type(key) is type(value) is torch.Tensor  # no shards
        and query.dtype == key.dtype == value.dtype
        and (query.requires_grad or key.requires_grad or value.requires_grad)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch._C._are_functorch_transforms_active()
    )


class SmallAttention(torch.autograd.Function):
    """torch's softmax(scaling * Q K^T) V, to the bit; its gradients from maps, made anew for a few images at a time.

    With P the map and dO the gradient of the output:

        dV = P^T dO,  dS = P * (dO V^T - rowsum(P * dO V^T)),  dQ = scaling * dS K,  dK = scaling * dS^T Q

    Scores and softmax are float32, so that the exponential of a large score is as exact as in torch's kernel; what
    enters a product is rounded to bfloat16, as it is there.

    Example:

    ```python
    >>> query = torch.ones(1, 2, 5, 8, dtype=torch.bfloat16, requires_grad=True)
    >>> output = SmallAttention.apply(query, query, query, 8**-0.5)
    >>> output.shape, torch.autograd.grad(output.sum(), query)[0][0, 0, 0, 0]
    (torch.Size([1, 2, 5, 8]), tensor(1., dtype=torch.bfloat16))

    ```
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
        """(B, H, N, D) each; the output too."""
        ctx.save_for_backward(query, key, value)
        ctx.scaling = scaling
        return nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of query, key and value, (B, H, N, D), which lie in memory as (B, N, H, D)."""
        query, key, value = ctx.saved_tensors
        # With create_graph=True, torch's own: it tells who asks for a second derivative that there is none.
        take = _gradients_with_graph if torch.is_grad_enabled() else _gradients
        return *take(query, key, value, gradient, ctx.scaling), None


def _gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scaling: float
) -> Sequence[torch.Tensor | None]:
    batch_size, num_heads, num_tokens, head_dim = query.shape
    at_once = min(batch_size, max(1, _WEIGHTS_AT_ONCE // (num_heads * num_tokens**2)))
    found = query.new_empty(3, batch_size, num_tokens, num_heads, head_dim).transpose(2, 3)
    # Memory for all rounds: what is fresh has to be cleared by the system first.
    scores = torch.empty(at_once * num_heads, num_tokens, num_tokens, dtype=torch.float32)
    weights = torch.empty_like(scores, dtype=query.dtype)
    for first in range(0, batch_size, at_once):
        images = slice(first, first + at_once)
        q, k, v, g = (it[images].flatten(0, 1).contiguous() for it in (query, key, value, gradient))
        p32, p = scores[: len(q)], weights[: len(q)]
        # Under autocast, too, a product with `out` is taken as it stands, in float32.
        torch.bmm(q.float(), k.float().mul_(scaling).transpose(1, 2), out=p32)
        p.copy_(torch.softmax(p32, -1, out=p32))
        dv = torch.bmm(p.transpose(1, 2), g)
        ds = p32.view(p.dtype).view(-1)[: p.numel()].view(p.shape)  # the scores are not needed again
        torch.bmm(g, v.transpose(1, 2), out=ds)
        torch._softmax_backward_data(ds, p, -1, p.dtype, grad_input=ds)
        dq = torch.baddbmm(dv, ds, k, beta=0, alpha=scaling)
        dk = torch.baddbmm(dv, ds.transpose(1, 2), q, beta=0, alpha=scaling)
        for whole, part in zip(found, (dq, dk, dv), strict=True):
            whole[images].copy_(part.view(-1, num_heads, num_tokens, head_dim))
    return found.unbind()


def _gradients_with_graph(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scaling: float
) -> Sequence[torch.Tensor | None]:
    output = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    asked = [it for it in (query, key, value) if it.requires_grad]
    found = iter(torch.autograd.grad(output, asked, gradient, create_graph=True))
    return [next(found) if it.requires_grad else None for it in (query, key, value)]
