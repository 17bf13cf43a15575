"""A linear probe: how well a logistic regression on frozen features of a pretrained ViT tells the classes apart.

    python examples/linear_probe.py --model MODEL --data DATA

MODEL is a QKViT folder or Hub id, or any checkpoint that `qkvit.convert` reads; DATA a folder of class folders, a
folder of Parquet files or a data set's id, with a split for training and one for testing. Features are computed once
and kept in --cache. The class token and the mean of the patches, after the last normalisation, are put side by side
and standardised (class token and mean as in the linear evaluation of DINOv2: Oquab et al. 2023, arXiv 2304.07193). The
strength of the regularisation is chosen on the validation split, or on a tenth of the training images.
"""

import argparse
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transfer import Prepare, load_base

import qkvit
from qkvit.data import batches, open_images

STRENGTHS = tuple(10.0**power for power in (-4, -3.5, -3, -2.5, -2, -1.5, -1, 0))  # C of scikit-learn


@torch.inference_mode()
def features(model: qkvit.QKViTModel, source: Any, prepare: Prepare, *, batch_size: int = 32) -> dict[str, np.ndarray]:
    """`features` (images, 2 C; C where there is no class token) and `labels` (images,)."""
    device, prefix = next(model.parameters()).device, model.config.num_prefix_tokens
    rows, labels = [], []
    parts = batches(source, prepare, batch_size=batch_size)
    for batch in tqdm(
        parts, total=len(parts), desc=f"features of {source.split or source.name}", unit=" batches", mininterval=1
    ):
        tokens = model(batch["pixel_values"].to(device)).last_hidden_state  # (B, N, C)
        pooled = [tokens[:, 0]] if model.config.use_class_token else []
        rows.append(torch.cat([*pooled, tokens[:, prefix:].mean(dim=1)], dim=1).cpu())
        labels.append(batch["labels"])
    return {"features": torch.cat(rows).numpy(), "labels": torch.cat(labels).numpy()}


def fingerprint(model: qkvit.QKViTModel, source: Any, prepare: Prepare) -> str:
    """Changes with the weights, the images and their preparation."""
    digest = hashlib.sha256(
        json.dumps([source.describe(), repr(prepare), model.config.to_dict()], default=str).encode()
    )
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def cached_features(model: Any, source: Any, prepare: Prepare, cache: Path, **options: Any) -> dict[str, np.ndarray]:
    """`features`, or what they were the last time."""
    path = cache / f"{source.split}-{fingerprint(model, source, prepare)}.npz"
    if not path.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part.npz")
        np.savez(part, **features(model, source, prepare, **options))
        part.replace(path)
    with np.load(path) as saved:
        return dict(saved)


def split_off(
    data: dict[str, np.ndarray], share: float, seed: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """A stratified random `share`, and the rest."""
    from sklearn.model_selection import train_test_split

    indices = np.arange(len(data["labels"]))
    rest, part = train_test_split(indices, test_size=share, random_state=seed, stratify=data["labels"])
    return {name: array[part] for name, array in data.items()}, {name: array[rest] for name, array in data.items()}


def fit(train: dict[str, np.ndarray], strength: float) -> Any:
    """Standardisation and multinomial logistic regression."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=2000, tol=1e-5))
    return classifier.fit(train["features"], train["labels"])


def accuracy(classifier: Any, data: dict[str, np.ndarray]) -> float:
    """Share of right answers."""
    return float((classifier.predict(data["features"]) == data["labels"]).mean())


def probe(
    train: dict[str, np.ndarray], validation: dict[str, np.ndarray], test: dict[str, np.ndarray]
) -> tuple[dict[str, Any], Any]:
    """Choose the strength on `validation`, train on all images but those of `test`; the result and the classifier."""
    scores = {strength: accuracy(fit(train, strength), validation) for strength in STRENGTHS}
    best = max(scores, key=lambda strength: scores[strength])  # of equals, the smoothest
    both = {name: np.concatenate([train[name], validation[name]]) for name in train}
    classifier = fit(both, best)
    result = {
        "C": best,
        "validation accuracy": scores[best],
        "test accuracy": accuracy(classifier, test),
        "trained on": len(both["labels"]),
        "test images": len(test["labels"]),
    }
    return result, classifier


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a QKViT folder or Hub id, or a checkpoint of another family")
    parser.add_argument("--data", required=True, help="class folders, Parquet files or a data set's id")
    parser.add_argument("--train", default="train", help="name of the split to train on")
    parser.add_argument("--validation", default="validation", help='name of the split to choose on; "" for none')
    parser.add_argument("--test", default="test", help="name of the split to test on")
    parser.add_argument("--size", type=int, default=224, help="height and width that the model sees")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--cache", type=Path, default=Path("outputs/features"), help="folder for the features")
    return parser.parse_args()


def main() -> dict[str, Any]:
    given = arguments()
    start = time.perf_counter()
    model = load_base(given.model).to(given.device)
    prepare = Prepare.like(model, given.size)

    def read(split: str) -> dict[str, np.ndarray]:
        source = open_images(given.data, split=split)
        return cached_features(model, source, prepare, given.cache, batch_size=given.batch_size)

    train, test = read(given.train), read(given.test)
    validation, train = (read(given.validation), train) if given.validation else split_off(train, 0.1, seed=0)
    of_features = time.perf_counter() - start
    result, _ = probe(train, validation, test)
    result |= {"seconds": {"features": round(of_features), "fits": round(time.perf_counter() - start - of_features)}}
    print(json.dumps(result, indent=2))
    return result


if __name__ == "__main__":
    main()
