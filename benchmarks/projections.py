"""Two choices of the network, timed: how Q, K and V are projected, and how patches are.

    python benchmarks/projections.py

Q, K and V: three matrix products, one of weights joined on the spot, one of weights joined before. Patches: a strided
convolution, and a linear layer on patches that were cut out. Microseconds of one call, the smallest and the median of
many, in turn.
"""

import argparse
from statistics import median

import torch
from report import cpu_name
from torch import nn
from turns import take_turns

from qkvit.modeling.embeddings_qkvit import cut_patches

TOKENS, IMAGE, PATCH = 197, 224, 16


@torch.no_grad()
def compare_qkv(width: int, batch: int, dtype: torch.dtype) -> str:
    """One line of the table of Q, K and V."""
    tokens = torch.randn(batch, TOKENS, width, dtype=dtype)
    layers = [nn.Linear(width, width, dtype=dtype) for _ in range(3)]

    def joined() -> tuple[torch.Tensor, torch.Tensor]:
        return torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])

    weight, bias = joined()
    calls = {
        "three products": lambda: [layer(tokens) for layer in layers],
        "join, then one": lambda: nn.functional.linear(tokens, *joined()),
        "already joined": lambda: nn.functional.linear(tokens, weight, bias),
    }
    return line(width, batch, dtype, take_turns(calls, at_least=300 if batch == 1 else 60))


@torch.no_grad()
def compare_patches(width: int, batch: int, dtype: torch.dtype) -> str:
    """One line of the table of patches, under autocast where the type is not float32."""
    images = torch.randn(batch, 3, IMAGE, IMAGE)
    convolution = nn.Conv2d(3, width, PATCH, PATCH)
    weight = convolution.weight.flatten(1)

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", dtype, enabled=dtype != torch.float32)

    def convolve() -> torch.Tensor:
        with autocast():
            return convolution(images).flatten(2).transpose(1, 2).contiguous()

    def cut() -> torch.Tensor:
        with autocast():
            return nn.functional.linear(cut_patches(images, (PATCH, PATCH)), weight, convolution.bias)

    return line(width, batch, dtype, take_turns({"convolution": convolve, "cut, then linear": cut}, at_least=60))


def line(width: int, batch: int, dtype: torch.dtype, times: dict[str, list[float]]) -> str:
    shown = "  ".join(f"{name} {1e6 * min(each):7.0f} {1e6 * median(each):7.0f}" for name, each in times.items())
    return f"{width:4} batch {batch} {str(dtype).removeprefix('torch.'):9} {shown}"


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {cpu_name()}")
    for title, compare in (("Q, K and V", compare_qkv), ("patches", compare_patches)):
        print(title)
        for dtype in (torch.float32, torch.bfloat16):
            for batch in (1, 8):
                for width in (192, 384, 768):
                    print(compare(width, batch, dtype), flush=True)


if __name__ == "__main__":
    main()
