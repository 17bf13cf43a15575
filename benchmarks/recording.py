"""What `record` costs: a forward pass with all queries, keys and values recorded, beside the plain one, in turn.

    python benchmarks/recording.py --output benchmarks/results/cpu-2-cores-recording.json

QKViT small/16 at 224 pixels. A ratio is a round's time over the plain forward pass of the same round; "control" is the
plain pass once more: what its ratio differs from 1 by is noise. The target is 1.10 for queries, keys and values.
"""

import argparse
import statistics
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
from report import heading, write
from turns import ratios, take_turns

import qkvit
from qkvit.analysis import Noise, intervene, record

# Name -> the context in which the model runs.
ASKED: dict[str, Callable] = {
    "plain": lambda model: nullcontext(),
    "query, key, value": record,
    "control": lambda model: nullcontext(),
    "one row of each map": lambda model: record(model, tensors="attention", queries=0),
    "output": lambda model: record(model, tensors="output"),
    "edit of the keys of a layer": lambda model: intervene(model, {(5, "key"): Noise()}),
}


def measure(size: str, batch: int, args: argparse.Namespace) -> dict:
    """One row of the table."""
    torch.manual_seed(0)
    config = qkvit.QKViTConfig.from_size(size, attn_implementation=args.implementation)
    model = qkvit.QKViTForImageClassification(config).eval().to(args.device)
    images = torch.randn(batch, 3, 224, 224, device=args.device)

    def step(context: Callable) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad(), context(model):
                model(images)

        return run

    times = take_turns({name: step(context) for name, context in ASKED.items()}, args.budget, device=args.device)
    plain = times["plain"]
    return {
        "size": size,
        "batch": batch,
        "implementation": args.implementation,
        "rounds": len(plain),
        "milliseconds": {name: 1000 * statistics.median(values) for name, values in times.items()},
        "ratio": {name: ratios(values, plain) for name, values in times.items() if name != "plain"},
    }


def line_of(row: dict) -> str:
    """A row as one line of text."""
    ratios = "  ".join(f"{name} {mid:.3f} [{low:.3f} {high:.3f}]" for name, (low, mid, high) in row["ratio"].items())
    plain = row["milliseconds"]["plain"]
    return f"{row['size']}/16 batch {row['batch']}  plain {plain:.1f} ms  {ratios}  {row['rounds']} rounds"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--implementation", default="sdpa")
    parser.add_argument("--sizes", nargs="+", default=["small"])
    parser.add_argument("--batches", nargs="+", type=int, default=[8, 1])
    parser.add_argument("--budget", type=float, default=60, help="seconds of turns for each row")
    parser.add_argument("--output", type=Path, help="write a JSON file with machine, versions, date and all rows")
    args = parser.parse_args()

    report = {
        **heading(args.device),
        "ratio": "time / time of the plain forward pass in the same round, quartiles over rounds",
        "rows": [],
    }
    for size in args.sizes:
        for batch in args.batches:
            row = measure(size, batch, args)
            report["rows"].append(row)
            print(line_of(row), flush=True)
            write(args.output, report)


if __name__ == "__main__":
    main()
