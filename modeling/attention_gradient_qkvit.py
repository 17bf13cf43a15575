"""The gradients of attention on a CPU in bfloat16, by matrix products: torch's kernel is slow where tokens are few.

Up to 730 tokens, output and gradients together are 1.04 to 2.2 times as fast on processors that have instructions for
bfloat16 (docs/performance.md).
"""

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

_FEWEST_WEIGHTS = 2**13  # B * H * N^2. Below, what it costs to call is more than what it saves.
_MOST_TOKENS = 730  # 27 x 27 patches and a class token; above, maps no longer fit into the processor's caches.
_BYTES_AT_ONCE = 2**24  # as many images at a time as take so much, or one


def pays_to_multiply(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, dropout: float) -> bool:
    """Whether the gradients of attention of these, each (B, H, N, D), are `SmallAttention`'s to take.

    That is where torch would take those of its fused kernel for CPUs, and is slow at it.
    """
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
        and query.shape == key.shape == value.shape  # not pruned
        and (query.requires_grad or key.requires_grad or value.requires_grad)
        and not (torch.compiler.is_compiling() or torch.jit.is_tracing())
        and not torch._C._are_functorch_transforms_active()
        and torch.backends.cuda.flash_sdp_enabled()  # for CPUs too: nobody has chosen torch's plain way
        and not (torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") != query.dtype)
        and torch._C._get_mkldnn_enabled()
        and _multiplies_bfloat16()
    )


@functools.cache
def _multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for it: without them, torch's kernel is faster."""
    has_library = torch.backends.mkldnn.is_available()
    return has_library and torch.cpu._is_avx512_bf16_supported() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


class SmallAttention(torch.autograd.Function):
    """torch's softmax(scaling * Q K^T) V, to the bit; its gradients from maps, made anew for a few images at a time.

    With P the map and dO the gradient of the output:

        dV = P^T dO,  dS = P * (dO V^T - rowsum(P * dO V^T)),  dQ = scaling * dS K,  dK = scaling * dS^T Q

    Scores and softmax are float32, so that the exponential of a large score is as exact as in torch's kernel; what
    enters a product is rounded to bfloat16, as it is there.

    Example:

    ```python
    >>> query = torch.ones(1, 2, 8, 4, dtype=torch.bfloat16, requires_grad=True)
    >>> output = SmallAttention.apply(query, query, query, 4**-0.5)
    >>> output.shape, torch.autograd.grad(output.sum(), query)[0][0, 0, 0, 0]
    (torch.Size([1, 2, 8, 4]), tensor(1., dtype=torch.bfloat16))

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
        # With create_graph=True, torch's own: it tells who asks for a second derivative that there is none. And of
        # many gradients at a time (is_grads_batched, torch.func.vmap): it has a rule for them.
        batched = torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(gradient)
        take = _gradients_of_torch if batched or torch.is_grad_enabled() else _gradients
        return *take(query, key, value, gradient, ctx.scaling), None


def _gradients(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scaling: float
) -> Sequence[torch.Tensor | None]:
    batch_size, num_heads, num_tokens, head_dim = query.shape
    bytes_of_image = num_heads * num_tokens * (6 * num_tokens + 22 * head_dim)  # scores, weights; copies, gradients
    at_once = min(batch_size, max(1, _BYTES_AT_ONCE // bytes_of_image))
    found = [query.new_empty(batch_size, num_tokens, num_heads, head_dim).transpose(1, 2) for _ in range(3)]
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
    return found


def _gradients_of_torch(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, gradient: torch.Tensor, scaling: float
) -> Sequence[torch.Tensor | None]:
    with_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        output = nn.functional.scaled_dot_product_attention(query, key, value, scale=scaling)
    asked = [it for it in (query, key, value) if it.requires_grad]
    found = iter(torch.autograd.grad(output, asked, gradient, create_graph=with_graph))
    return [next(found) if it.requires_grad else None for it in (query, key, value)]
