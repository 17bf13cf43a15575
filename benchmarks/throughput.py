"""Throughput of QKViT beside transformers' ViT (sdpa) and, where it imports, timm's, in turn in one process.

    python benchmarks/throughput.py                                   # the CPU table of docs/performance.md
    python benchmarks/throughput.py --sizes tiny --image-size 32 --patch-size 4 --batches 128
    python benchmarks/throughput.py --device cuda --compile off on --dtypes bfloat16 --batches 1 8 64 256

All three have the same sizes, see the same images and take turns, so that a machine whose speed drifts slows all of
them; what is compared is the ratio of a round's times. A ratio is a peer's time over QKViT's: above 1, QKViT is faster.
"control" is a second QKViT: a difference that is not larger than the control's is noise.
The share of the matrix rate is the model's matrix products (2 mnk each, three times that in training) over the time,
against a large matrix product measured in the same run.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from report import heading, write
from torch import nn
from turns import ratios, seconds, take_turns

import qkvit

NUM_LABELS = 1000


# ---- the three models


def make_qkvit(size: str, image_size: int, patch_size: int) -> nn.Module:
    config = qkvit.QKViTConfig.from_size(
        size, image_size=image_size, patch_size=patch_size, num_labels=NUM_LABELS, attn_implementation="sdpa"
    )
    return qkvit.QKViTForImageClassification(config)


def make_transformers(size: str, image_size: int, patch_size: int) -> nn.Module:
    width, depth, heads, mlp = qkvit.NAMED_SIZES[size]
    config = transformers.ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=mlp,
        image_size=image_size,
        patch_size=patch_size,
        num_labels=NUM_LABELS,
        layer_norm_eps=1e-6,
        attn_implementation="sdpa",
    )
    return transformers.ViTForImageClassification(config)


def make_timm(size: str, image_size: int, patch_size: int) -> nn.Module:
    import timm

    name = f"vit_{size}_patch16_224"
    return timm.create_model(name, img_size=image_size, patch_size=patch_size, num_classes=NUM_LABELS)


def others() -> list[str]:
    """The libraries that are measured beside transformers."""
    return ["timm"] if "timm" in makers_in_use else []


def logits_of(output: object) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits  # type: ignore[attr-defined]


def makers() -> dict[str, Callable[[str, int, int], nn.Module]]:
    found: dict[str, Callable[[str, int, int], nn.Module]] = {
        "qkvit": make_qkvit,
        "transformers": make_transformers,
        "control": make_qkvit,  # the same again: what its ratio differs from 1 by is noise
    }
    try:
        import timm  # noqa: F401

        found["timm"] = make_timm
    except Exception as error:
        print(f"timm is left out, it does not import here ({type(error).__name__}: {error})", file=sys.stderr)
    return found


# ---- what is timed


def inference(model: nn.Module, images: torch.Tensor, autocast: torch.dtype | None) -> Callable[[], None]:
    model.eval()

    def step() -> None:
        with torch.no_grad(), torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            logits_of(model(images))

    return step


def training(model: nn.Module, images: torch.Tensor, autocast: torch.dtype | None) -> Callable[[], None]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    labels = torch.arange(len(images), device=images.device) % NUM_LABELS

    def step() -> None:
        with torch.autocast(images.device.type, autocast, enabled=autocast is not None):
            loss = nn.functional.cross_entropy(logits_of(model(images)).float(), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


MODES = {"inference": inference, "training": training}


# ---- measuring


def matrix_rate(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product in the data type of the models' products."""
    n = 8192 if device == "cuda" else 1536
    left, right = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))

    def product() -> None:
        left @ right

    for _ in range(3):
        product()
    return 2 * n**3 / min(seconds(product, device, 5) for _ in range(3))


def flops_per_image(size: str, image_size: int, patch_size: int) -> float:
    """Matrix products of one image's forward pass: patches, Q K V O, scores and output, MLP, classifier."""
    width, depth, _, mlp = qkvit.NAMED_SIZES[size]
    patches = (image_size // patch_size) ** 2
    tokens = patches + 1
    layer = 4 * tokens * width**2 + 2 * tokens**2 * width + 2 * tokens * width * mlp
    return 2.0 * (patches * 3 * patch_size**2 * width + depth * layer + width * NUM_LABELS)


def measure(size: str, mode: str, batch: int, dtype: str, compiled: bool, args: argparse.Namespace) -> dict:
    """One row of the table."""
    autocast = None if dtype == "float32" else getattr(torch, dtype)
    images = torch.randn(batch, 3, args.image_size, args.image_size, device=args.device)
    steps = {}
    torch._dynamo.reset()  # a size that comes second would be compiled for any size, and another graph timed
    for name, make in makers_in_use.items():
        torch.manual_seed(0)
        model: nn.Module = make(size, args.image_size, args.patch_size).to(args.device)
        if compiled:
            model = torch.compile(model, mode=args.compile_mode)  # type: ignore[assignment]
        steps[name] = MODES[mode](model, images, autocast)
    times = take_turns(steps, args.budget, device=args.device)
    rate = matrix_rate(args.device, autocast or torch.float32)
    flops = flops_per_image(size, args.image_size, args.patch_size) * batch * (3 if mode == "training" else 1)
    row: dict = {"size": size, "mode": mode, "batch": batch, "dtype": dtype, "compiled": compiled}
    row |= {"image_size": args.image_size, "patch_size": args.patch_size}
    row["rounds"] = len(times["qkvit"])
    row["milliseconds"] = {name: 1000 * statistics.median(values) for name, values in times.items()}
    row["images_per_second"] = {name: batch / statistics.median(values) for name, values in times.items()}
    row["share_of_matrix_rate"] = {name: flops / statistics.median(values) / rate for name, values in times.items()}
    row["matrix_tflops"] = rate / 1e12
    row["ratio"] = {name: ratios(times[name], times["qkvit"]) for name in times if name != "qkvit"}
    return row


# ---- report


def line_of(row: dict) -> str:
    """A row as one line of text."""
    what = f"{row['size'] + '/' + str(row['patch_size']):9} {row['mode']:9} {row['dtype']:8} batch {row['batch']:3}"
    what += " compiled" if row["compiled"] else "         "
    times = "  ".join(f"{name} {value:8.2f} ms" for name, value in row["milliseconds"].items())
    ratios = "  ".join(f"vs {name} {mid:.3f} [{low:.3f} {high:.3f}]" for name, (low, mid, high) in row["ratio"].items())
    share = f"{row['share_of_matrix_rate']['qkvit']:.0%} of matrix rate"
    return f"{what}  {times}  {ratios}  {share}  {row['rounds']} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--sizes", nargs="+", default=["tiny", "small", "base"])
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--patch-size", type=int, default=16)
    parser.add_argument("--modes", nargs="+", default=list(MODES), choices=list(MODES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument(
        "--dtypes", nargs="+", default=["float32", "bfloat16"], choices=["float32", "bfloat16", "float16"]
    )
    parser.add_argument("--without", nargs="+", default=[], help="leave out some of qkvit's peers, or the control")
    parser.add_argument("--compile", nargs="+", default=["off"], choices=["off", "on"])
    parser.add_argument("--compile-mode", default="default")
    parser.add_argument("--budget", type=float, default=20, help="seconds of turns for each row")
    parser.add_argument("--output", type=Path, help="write a JSON file with machine, versions, date and all rows")
    args = parser.parse_args()

    makers_in_use.update((name, make) for name, make in makers().items() if name not in args.without)
    report = {
        **heading(args.device, *others()),
        "ratio": "peer's time / QKViT's time, quartiles over rounds: above 1, QKViT is faster",
        "rows": [],
    }
    for compiled in args.compile:
        for dtype in args.dtypes:
            for mode in args.modes:
                for size in args.sizes:
                    for batch in args.batches:
                        row = measure(size, mode, batch, dtype, compiled == "on", args)
                        report["rows"].append(row)
                        print(line_of(row), flush=True)
                        write(args.output, report)


makers_in_use: dict[str, Callable[[str, int, int], nn.Module]] = {}

if __name__ == "__main__":
    main()
