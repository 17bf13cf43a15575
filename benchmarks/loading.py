"""What it costs to load a model, with and without the check of its SHA256SUMS, beside transformers' ViT.

    python benchmarks/loading.py --sizes base large

Seconds of `from_pretrained` and of the first forward pass after it (safetensors reads a page of the file when it is
first used), medians of rounds in turn. Files are in the system's cache, as where a model is loaded again.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, ViTConfig, ViTModel
from transformers.utils import logging

from qkvit import QKViTConfig, QKViTModel

SUMS = "SHA256SUMS"


def make(size: str, folder: Path) -> dict[str, Path]:
    """QKViT and transformers' ViT of one size, with random weights."""
    config = QKViTConfig.from_size(size, image_size=224, patch_size=16)
    peer = ViTConfig(
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=config.num_attention_heads,
        intermediate_size=config.intermediate_size,
    )
    paths = {"qkvit": folder / "qkvit", "qkvit, unchecked": folder / "unchecked", "transformers": folder / "peer"}
    model = QKViTModel(config)
    model.save_pretrained(paths["qkvit"])
    model.save_pretrained(paths["qkvit, unchecked"])
    (paths["qkvit, unchecked"] / SUMS).unlink()
    ViTModel(peer, add_pooling_layer=False).save_pretrained(paths["transformers"])
    return paths


def seconds(step: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = step()
    return time.perf_counter() - start, result


def load(path: Path) -> Any:
    more = {} if (path / "modeling_qkvit.py").exists() else {"add_pooling_layer": False}
    return AutoModel.from_pretrained(path, **more).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["base", "large"])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    pixels = torch.zeros(1, 3, 224, 224)
    for size in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            paths = make(size, Path(folder))
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in paths}
            for _ in range(arguments.rounds):
                for name, path in paths.items():
                    loading, model = seconds(lambda path=path: load(path))
                    forward, _ = seconds(lambda model=model: model(pixels))
                    taken[name].append((loading, forward))
            bytes_ = (paths["qkvit"] / "model.safetensors").stat().st_size
            print(f"{size}, {bytes_ / 1e6:.0f} MB of weights")
            for name, pairs in taken.items():
                loading, forward = (statistics.median(part) for part in zip(*pairs, strict=True))
                print(f"  {name:18s} load {loading:.2f} s, first forward pass {forward:.2f} s")


if __name__ == "__main__":
    main()
