"""LayerNorm under autocast on a GPU, one kernel each way: float32 in, autocast's type out.

torch normalises in float32 and writes float32, which is then read and converted for the matrix product that follows; on
the way back likewise, and the gradients of weight and bias are its slowest kernel. Here one kernel reads each token
once and writes what the product takes; the mathematics and its float32 stay. The plain way is `torch.nn.LayerNorm`.

Triton may be missing where this file is loaded.

Shapes: M tokens of all images, C width of the model.
"""

import contextlib
import os
from functools import cache
from typing import Any

import torch
from torch import nn

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None  # type: ignore[assignment]

if triton is not None:

    @triton.jit
    def _forward_kernel(x, weight, bias, normed, means, scales, width, eps, BLOCK: tl.constexpr):
        """(x - mean) / sqrt(variance + eps) * weight + bias of one token; keeps the mean and the factor."""
        token = tl.program_id(0).to(tl.int64)
        column = tl.arange(0, BLOCK)
        inside = column < width
        values = tl.load(x + token * width + column, mask=inside, other=0.0)
        mean = tl.sum(values, axis=0) / width
        centred = tl.where(inside, values - mean, 0.0)
        scale = 1 / tl.sqrt(tl.sum(centred * centred, axis=0) / width + eps)
        gain = tl.load(weight + column, mask=inside, other=0.0)
        shift = tl.load(bias + column, mask=inside, other=0.0)
        tl.store(normed + token * width + column, centred * scale * gain + shift, mask=inside)
        tl.store(means + token, mean)
        tl.store(scales + token, scale)

    @triton.jit
    def _backward_kernel(
        x, weight, means, scales, gradient, of_x, of_weight, of_bias, tokens, width, BLOCK: tl.constexpr
    ):
        """The gradient of x, of every so-manieth token; and of weight and bias, what these tokens add to it."""
        first, step = tl.program_id(0), tl.num_programs(0)
        column = tl.arange(0, BLOCK)
        inside = column < width
        gain = tl.load(weight + column, mask=inside, other=0.0)
        sum_weight = tl.zeros([BLOCK], tl.float32)
        sum_bias = tl.zeros([BLOCK], tl.float32)
        for token in range(first, tokens, step):
            at = tl.cast(token, tl.int64) * width + column
            given = tl.load(gradient + at, mask=inside, other=0.0).to(tl.float32)
            values = tl.load(x + at, mask=inside, other=0.0)
            scale = tl.load(scales + token)
            normal = tl.where(inside, (values - tl.load(means + token)) * scale, 0.0)
            scaled = given * gain
            along = tl.sum(scaled * normal, axis=0) / width
            found = (scaled - tl.sum(scaled, axis=0) / width - normal * along) * scale
            tl.store(of_x + at, found, mask=inside)
            sum_weight += given * normal
            sum_bias += given
        at = tl.cast(first, tl.int64) * width + column
        tl.store(of_weight + at, sum_weight, mask=inside)
        tl.store(of_bias + at, sum_bias, mask=inside)


WIDEST = 8192  # a program keeps a token in registers
PROGRAMS = 1024  # of the way back: some for each multiprocessor, and few partial sums of the weights' gradients


class FusedNorm(torch.autograd.Function):
    """LayerNorm of float32 tokens, given in another type. `create_graph=True` takes torch's own operations."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
    ) -> torch.Tensor:
        tokens, width = x.shape[:-1].numel(), x.shape[-1]
        normed = x.new_empty(x.shape, dtype=dtype)
        kept = x.new_empty(2, tokens)
        with _on(x):
            _forward_kernel[(tokens,)](
                x.contiguous(), weight, bias, normed, kept[0], kept[1], width, eps, **_options(width)
            )  # fmt: skip
        ctx.save_for_backward(x, weight, bias, kept)
        ctx.eps = eps
        return normed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x, weight, bias, kept = ctx.saved_tensors
        (gradient,) = gradients
        if torch.is_grad_enabled():  # a gradient of the gradient is wanted
            return *_differentiable(gradient, (x, weight, bias), ctx.eps, ctx.needs_input_grad), None, None
        tokens, width = x.shape[:-1].numel(), x.shape[-1]
        programs = min(tokens, PROGRAMS)
        of_x = x.new_empty(x.shape)
        parts = x.new_empty(2, programs, width)
        with _on(x):
            _backward_kernel[(programs,)](
                x.contiguous(), weight, kept[0], kept[1], gradient.contiguous(), of_x, parts[0], parts[1], tokens,
                width, **_options(width),
            )  # fmt: skip
        of_weight, of_bias = parts.sum(dim=1)
        return of_x, of_weight, of_bias, None, None


def _differentiable(
    gradient: torch.Tensor, inputs: tuple[torch.Tensor, ...], eps: float, wanted: tuple[bool, ...]
) -> list[torch.Tensor | None]:
    x, weight, bias = inputs
    with torch.autocast(x.device.type, enabled=False):
        normed = nn.functional.layer_norm(x, x.shape[-1:], weight, bias, eps)
        asked = [it for it, is_wanted in zip(inputs, wanted, strict=False) if is_wanted]
        found = iter(torch.autograd.grad(normed, asked, gradient.to(normed.dtype), create_graph=True))
    return [next(found) if is_wanted else None for is_wanted in wanted[: len(inputs)]]


def can_fuse(norm: nn.Module, x: torch.Tensor) -> bool:
    """Whether the kernels can take this norm of these tokens (B, N, C)."""
    return (
        type(norm) is nn.LayerNorm
        and norm.weight is not None
        and norm.bias is not None
        and x.dtype == norm.weight.dtype == torch.float32
        and type(norm.weight) is nn.Parameter  # not sharded
        and len(norm.normalized_shape) == 1
        and x.shape[-1] <= WIDEST
        and _works()
    )


@cache
def _works() -> bool:
    """Whether Triton is there and can compile: on a GPU it needs a C compiler, which not every container has."""
    if triton is None or torch.version.hip is not None:
        return False
    if os.environ.get("TRITON_INTERPRET") == "1":
        return True
    try:
        from triton.runtime import driver

        driver.active.get_current_target()
    except Exception:
        return False
    return True


def _on(x: torch.Tensor) -> Any:
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()  # the CPU interprets


def _options(width: int) -> dict[str, int]:
    return {"BLOCK": triton.next_power_of_2(width), "num_warps": 4 if width <= 1024 else 8}
