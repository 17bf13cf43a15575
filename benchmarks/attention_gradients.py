"""Attention's output and gradients in bfloat16 on a CPU: torch's, beside those that QKViT takes by matrix products.

    python benchmarks/attention_gradients.py

Heads of width 64; both in turn, rounds for 1.5 seconds. A ratio is torch's time over ours: above 1, ours is faster.
Errors are of dQ, dK and dV, by norm, against float64, of one image with three heads.
"""

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from report import heading, write
from turns import ratios, take_turns

from qkvit.modeling.attention_gradient_qkvit import SmallAttention

HEAD_DIM = 64
TOKENS = (17, 65, 197, 401, 577, 730, 1025)
IMAGES_AND_HEADS = ((1, 3), (1, 6), (8, 6), (5, 12))


def theirs(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=HEAD_DIM**-0.5)


def ours(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    return SmallAttention.apply(query, key, value, HEAD_DIM**-0.5)


def as_projected(images: int, heads: int, tokens: int) -> torch.Tensor:
    """(B, H, N, D), in memory (B, N, H, D)."""
    return torch.randn(images, tokens, heads, HEAD_DIM).bfloat16().transpose(1, 2)


def measure(images: int, heads: int, tokens: int, budget: float) -> dict:
    query, key, value = (as_projected(images, heads, tokens).requires_grad_() for _ in range(3))
    gradient = as_projected(images, heads, tokens)

    def step(attend: Callable[..., torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(query, key, value), (query, key, value), gradient)

    times = take_turns({"torch": step(theirs), "qkvit": step(ours)}, budget)
    return {
        "tokens": tokens,
        "images": images,
        "heads": heads,
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "ratio": ratios(times["torch"], times["qkvit"]),
        "rounds": len(times["torch"]),
    }


def errors(tokens: int) -> dict[str, list[float]]:
    query, key, value = (as_projected(1, 3, tokens).requires_grad_() for _ in range(3))
    gradient = as_projected(1, 3, tokens)
    precise = [it.detach().double().requires_grad_() for it in (query, key, value)]
    output = (precise[0] @ precise[1].transpose(-1, -2) * HEAD_DIM**-0.5).softmax(-1) @ precise[2]
    wanted = torch.autograd.grad(output, precise, gradient.double())
    found = {}
    for name, attend in (("torch", theirs), ("qkvit", ours)):
        got = torch.autograd.grad(attend(query, key, value), (query, key, value), gradient)
        found[name] = [((a - b).norm() / b.norm()).item() for a, b in zip(got, wanted, strict=True)]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budget", type=float, default=1.5, help="seconds of turns for each row")
    parser.add_argument("--output", type=Path, help="write a JSON file with machine, versions, date and all rows")
    args = parser.parse_args()
    torch.manual_seed(0)
    report: dict = {
        **heading(),
        "ratio": "torch's time / QKViT's, quartiles over rounds",
        "rows": [],
        "errors": {},
    }
    for tokens in TOKENS:
        report["errors"][tokens] = found = errors(tokens)
        print(tokens, {name: [round(value, 4) for value in values] for name, values in found.items()})
        for images, heads in IMAGES_AND_HEADS:
            report["rows"].append(row := measure(images, heads, tokens, args.budget))
            low, mid, high = row["ratio"]
            print(f"  {images} images, {heads:2} heads: {mid:.2f} ({low:.2f} to {high:.2f})", flush=True)
            write(args.output, report)


if __name__ == "__main__":
    main()
