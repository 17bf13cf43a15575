"""What int8 costs in accuracy: features and a linear probe of a model, and of the same model quantised by torchao.

    pip install "qkvit[quantisation]"
    python benchmarks/quantisation.py --model MODEL --data DATA --output benchmarks/results/quantisation.json

The probe is trained on features of the float32 model (examples/linear_probe.py, whose cache it shares) and tested on
features of each quantised model: what a user sees who quantises a finished model. "weight-only" keeps int8 weights, one
scale for each output channel; "dynamic" also rounds each layer's input to int8, one scale for each token.
"""

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from report import heading, write

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))

from linear_probe import cached_features, features, probe  # noqa: E402
from transfer import Prepare, load_base  # noqa: E402

from qkvit.data import open_images  # noqa: E402


def schemes() -> dict[str, Any]:
    """By name; torchao is imported here, for it is heavy."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig

    return {"int8 weight-only": Int8WeightOnlyConfig(), "int8 dynamic": Int8DynamicActivationInt8WeightConfig()}


def megabytes(model: torch.nn.Module) -> float:
    """Of all parameters, as they are stored."""
    total = 0
    for parameter in model.parameters():
        data, scale = getattr(parameter, "qdata", None), getattr(parameter, "scale", None)
        parts = [parameter] if data is None else [data, scale]
        total += sum(part.numel() * part.element_size() for part in parts)
    return round(total / 1e6, 1)


def cosines(first: np.ndarray, second: np.ndarray) -> dict[str, float]:
    """Of the feature vectors of each image: (images, C) and (images, C)."""
    products = (first * second).sum(1) / np.linalg.norm(first, axis=1) / np.linalg.norm(second, axis=1)
    return {"mean": float(products.mean()), "smallest": float(products.min())}


def compare(
    classifier: Any, exact: dict[str, np.ndarray], rounded: dict[str, np.ndarray], width: int
) -> dict[str, Any]:
    """Features of the test images from the float32 model and from the quantised one."""
    before, after = (classifier.predict(data["features"]) for data in (exact, rounded))
    half = {"class token": slice(0, width), "mean of the patches": slice(-width, None)}
    return {
        "cosine similarity": {
            name: cosines(exact["features"][:, part], rounded["features"][:, part]) for name, part in half.items()
        },
        "test accuracy": float((after == exact["labels"]).mean()),
        "predictions that changed": int((before != after).sum()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--cache", type=Path, default=Path("outputs/features"))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()

    model = load_base(given.model)
    prepare = Prepare.like(model, given.size)
    data = {
        split: cached_features(model, open_images(given.data, split=split), prepare, given.cache)
        for split in ("train", "validation", "test")
    }
    result, classifier = probe(**data)
    record: dict[str, Any] = {
        "model": Path(given.model).name,
        "data": f"{Path(given.data).name}, {len(data['test']['labels'])} test images at {given.size}",
        **heading("cpu", "torchao"),
        "float32": {"test accuracy": result["test accuracy"], "MB": megabytes(model)},
    }
    for name, scheme in schemes().items():
        from torchao.quantization import quantize_

        small = copy.deepcopy(model)
        quantize_(small, scheme)
        rounded = features(small, open_images(given.data, split="test"), prepare, batch_size=given.batch_size)
        record[name] = compare(classifier, data["test"], rounded, model.config.hidden_size) | {"MB": megabytes(small)}
        print(name, json.dumps(record[name]), flush=True)
    print(json.dumps(record, indent=2))
    write(given.output, record)


if __name__ == "__main__":
    main()
