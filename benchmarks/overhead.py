"""What a model costs beside its arithmetic: processor time of 12 layers of width 24, QKViT beside its peers.

    python benchmarks/overhead.py --output benchmarks/results/cpu-overhead.json

The model is so narrow and the image so small (four patches) that what is left is Python and torch's own bookkeeping:
the calls of modules and operations, autograd's, and the optimiser's. One thread, time of the processor
(`time.process_time`), so that other programs on the machine matter little; the models take turns, medians.
"""

import argparse
import time
from pathlib import Path
from statistics import median
from typing import Any

import throughput
import torch
import transformers
from report import heading, write
from torch import nn
from turns import take_turns

import qkvit

WIDTH, DEPTH, HEADS, IMAGE_SIZE, PATCH_SIZE, NUM_LABELS = 24, 12, 3, 32, 16, 10


def models() -> dict[str, nn.Module]:
    """All of the same sizes; timm's where it imports."""
    sizes: dict[str, Any] = {
        "hidden_size": WIDTH,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": HEADS,
        "intermediate_size": 4 * WIDTH,
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "num_labels": NUM_LABELS,
        "attn_implementation": "sdpa",
    }
    found: dict[str, nn.Module] = {
        "qkvit": qkvit.QKViTForImageClassification(qkvit.QKViTConfig(**sizes)),
        "transformers": transformers.ViTForImageClassification(transformers.ViTConfig(**sizes)),
    }
    if "timm" in throughput.makers_in_use:
        from timm.models.vision_transformer import VisionTransformer

        found["timm"] = VisionTransformer(
            IMAGE_SIZE, PATCH_SIZE, embed_dim=WIDTH, depth=DEPTH, num_heads=HEADS, num_classes=NUM_LABELS
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--output", type=Path, help="write a JSON file with machine, versions, date and all rows")
    args = parser.parse_args()
    torch.set_num_threads(1)
    throughput.makers_in_use.update(throughput.makers())
    images = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    rows = []
    for mode, make_step in throughput.MODES.items():
        for dtype in (None, torch.bfloat16):
            steps = {name: make_step(model, images, dtype) for name, model in models().items()}
            row = {"mode": mode, "dtype": str(dtype or torch.float32).removeprefix("torch.")}
            times = take_turns(steps, at_least=args.rounds, clock=time.process_time, warm_up=args.rounds // 10)
            rows.append(row | {"milliseconds": {name: round(1000 * median(each), 3) for name, each in times.items()}})
            print(rows[-1], flush=True)
    report = {
        **heading("cpu", *throughput.others()),
        "milliseconds": f"of processor time, median of {args.rounds}: {DEPTH} layers of width {WIDTH}, 5 tokens",
        "rows": rows,
    }
    write(args.output, report)


if __name__ == "__main__":
    main()
