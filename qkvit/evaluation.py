"""`qkvit evaluate`: how well a model classifies a data set, in numbers, one picture and one table of all predictions.

The folder it writes:

    results.json           the metrics, and what they were computed from: model, data, versions, command
    confusion.png          what is taken for what
    predictions.parquet    a row for each image: name, class, prediction, probability; and as .csv
"""

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .device import usable_device
from .errors import UserError, sentences
from .evaluation_labels import match_labels
from .finished_folder import check_target, finished_folder
from .metrics import compute
from .packages import check_packages
from .pretrained import load_image_processor, load_pretrained
from .provenance import command_line, in_a_line, provenance
from .seen_images import held_out_images, said_of_seen_images
from .startup import load_models
from .tables import table
from .training.quiet import quiet_libraries

NEEDED = {"datasets": "datasets", "evaluate": "evaluate", "matplotlib": "matplotlib", "pyarrow": "pyarrow"}
RECORD = "results.json"
CALIBRATION_BINS = 15
TOP = 5


class Predictions(NamedTuple):
    """What a model says about images: (N,) each, and probabilities (N, the model's labels)."""

    names: list[str]
    labels: Any  # the model's indices
    probabilities: Any
    seconds: float


def run_evaluation(
    model_name: str,
    data_name: str,
    output: Path,
    *,
    split: str | None = None,
    batch_size: int = 32,
    device: str = "auto",
    num_workers: int = 0,
    by_index: bool = False,
    on_bad_image: str = "stop",
    trust_remote_code: bool = False,
    seed: int = 0,
    force: bool = False,
) -> dict[str, Any]:
    """All of it, from the images to the folder.

    Args:
        model_name: A folder or a Hub id that `AutoModelForImageClassification` loads.
        data_name: Whatever `qkvit.data.open_images` opens, with labels.
        output: The folder to write.
        split: Of the data; "validation" of undivided data are the images that the recipe beside the model held out.
        device: "cpu", "cuda", "cuda:1", ...; "auto" takes a GPU if there is one.
        by_index: Take label i of the data for label i of the model, whatever their names are.
        on_bad_image: "stop" or "skip", as `open_images` has it.
        trust_remote_code: Run the code that a model brings along.
        seed: For whatever of a model is random; the models of transformers have nothing random in evaluation.
        force: Replace the folder of an earlier evaluation.

    Returns:
        The record that is also in `results.json`.

    Raises:
        UserError: the folder may not be written, a package is missing, the model or the data cannot be used, or their
            labels do not go together.
    """
    options = {
        "model": model_name,
        "data": data_name,
        "split": split,
        "batch_size": batch_size,
        "device": device,
        "by_index": by_index,
        "on_bad_image": on_bad_image,
        "trust_remote_code": trust_remote_code,
        "seed": seed,
    }
    check_packages(NEEDED)
    check_target(output, marker=RECORD, force=force, what="qkvit evaluate")
    load_models()
    import torch

    from .data import open_images
    from .data.hub_names import look_for
    from .training.recipe import BUILT_IN

    device = usable_device(device)
    torch.manual_seed(seed)
    if data_name in BUILT_IN and not Path(data_name).exists():
        raise UserError(
            f"{data_name} is the data of a recipe, from a package; what a model makes of the images held out is in"
            " metrics.json of its run, or pass --data with images of your own"
        )
    with sentences():
        look_for(model_name, "model")
        look_for(data_name, "dataset")
    with quiet_libraries(), finished_folder(output) as folder:
        model, processor = load_classifier(model_name, device, trust_remote_code=trust_remote_code)
        with sentences():
            choice: Any = on_bad_image  # checked there
            # An address can be read in place alone.
            source = held_out_images(model_name, data_name, split, choice) or open_images(
                data_name, split=split, on_bad_image=choice, streaming="://" in data_name
            )
        indices = _indices(source, model.config, by_index)
        print(f"{len(source):,} images of {len(indices)} classes, by {model_name} on {model.device}", flush=True)
        seen = said_of_seen_images(model_name, data_name, split)
        if seen is not None:
            print(f"Note: {seen}.", flush=True)
        predictions = predict(model, processor, source, indices, batch_size=batch_size, num_workers=num_workers)
        record = _record_of(options, model, processor, source, predictions.seconds)
        record["data"]["seen in training"] = seen
        record["metrics"] = measure(predictions)
        _write(folder, record, predictions, source.class_names or (), indices, model.config)
    print(_farewell(record, output))
    return record


def load_classifier(name: str, device: str, *, trust_remote_code: bool = False) -> tuple[Any, Any]:
    """A classifier in float32, in eval mode, and its image processor.

    Raises:
        UserError: there is none of that name, it has no classifier or no image processor.
    """
    from transformers import AutoModelForImageClassification

    model, missing = load_pretrained(AutoModelForImageClassification, name, device, trust_remote_code=trust_remote_code)
    if missing:
        raise UserError(
            f"{name} has no weights for {', '.join(sorted(missing)[:3])}: it is no trained classifier; train one first,"
            " as examples/finetune.py does"
        )
    return model, load_image_processor(name, trust_remote_code=trust_remote_code)


def _indices(source: Any, config: Any, by_index: bool) -> list[int]:
    """For each class of the data, the model's index."""
    if source.class_names is None:
        raise UserError(f"{source.name} has no labels; pass class folders, or a data set with a column of labels")
    if not by_index:
        return match_labels(source.class_names, config.id2label)
    if len(source.class_names) > config.num_labels:
        raise UserError(
            f"the data has {len(source.class_names)} classes and the model {config.num_labels} labels; leave --by-index"
            " out, or evaluate another model"
        )
    return list(range(len(source.class_names)))


def predict(
    model: Any, processor: Any, source: Any, indices: Sequence[int], *, batch_size: int = 32, num_workers: int = 0
) -> Predictions:
    """The model's probabilities for every labelled image, with a progress bar.

    Args:
        indices: For each class of the data, the model's index.

    Raises:
        UserError: an image cannot be used and the source says "stop"; no image has a label.
    """
    import numpy as np
    import torch
    from tqdm import tqdm

    from .data import batches

    start = time.perf_counter()
    names: list[str] = []
    labels, probabilities = [], []
    to_index = torch.tensor(indices)
    with torch.inference_mode(), tqdm(total=len(source), unit=" images", delay=1) as bar:
        for batch in _told(batches(source, processor, batch_size=batch_size, num_workers=num_workers)):
            known = batch["labels"] >= 0
            bar.update(len(known))
            if not known.any():
                continue
            logits = model(pixel_values=batch["pixel_values"][known].to(model.device)).logits  # (B, labels)
            if not logits.isfinite().all():
                of_image = batch["name"][int(known.nonzero()[(~logits.isfinite()).any(dim=1).nonzero()[0, 0], 0])]
                raise UserError(f"{model.name_or_path} gives NaN or infinity for {of_image}; look at its weights")
            probabilities.append(logits.double().softmax(dim=-1).cpu().numpy())
            labels.append(to_index[batch["labels"][known]].numpy())
            names += [name for name, is_known in zip(batch["name"], known.tolist(), strict=True) if is_known]
    if not names:
        raise UserError(f"no image of {source.name} has a label; pass a data set with labels")
    return Predictions(names, np.concatenate(labels), np.concatenate(probabilities), time.perf_counter() - start)


def _told(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches, with what goes wrong in reading them as a user's errors; not what goes wrong in the model."""
    with sentences(also=(RuntimeError,)):
        yield from batches


def measure(predictions: Predictions) -> dict[str, float | int | None]:
    """The metrics of `qkvit.metrics`, as shares of 1; top-5 accuracy is None for a model of five labels or fewer."""
    probabilities, labels = predictions.probabilities, predictions.labels
    found = probabilities.argmax(axis=1)
    top: dict[str, Any] = {f"top_{TOP}_accuracy": None}
    if probabilities.shape[1] > TOP:
        top = compute("top_k_accuracy", probabilities, labels, k=TOP)
    return {
        "images": len(labels),
        **compute("accuracy", found, labels),
        **top,
        **compute("macro_f1", found, labels),
        **compute("expected_calibration_error", probabilities, labels, bins=CALIBRATION_BINS),
    }


def _record_of(options: dict[str, Any], model: Any, processor: Any, source: Any, seconds: float) -> dict[str, Any]:
    """What the numbers depend on; `options` are those of the command line, as given."""
    from .data.hub_names import revision_of

    command = command_line("evaluate", options["model"], {name: options[name] for name in options if name != "model"})
    return {
        **provenance(command, options["seed"], model.device, packages=("datasets", "evaluate")),
        "model": {
            "name": options["model"],
            "revision": revision_of(options["model"], "model"),
            "class": type(model).__name__,
            "parameters": model.num_parameters(),
            "labels": model.config.num_labels,
            "image processor": json.loads(processor.to_json_string()),
        },
        "data": source.describe()
        | {
            "revision": revision_of(options["data"], "dataset"),
            "left out": [vars(bad) for bad in source.bad_images],
        },
        "seconds": round(seconds, 1),
    }


def _write(
    folder: Path,
    record: dict[str, Any],
    predictions: Predictions,
    class_names: Sequence[str],
    indices: Sequence[int],
    config: Any,
) -> None:
    from .analysis.pictures import draw_confusion

    (folder / RECORD).write_text(json.dumps(record, indent=2, default=str) + "\n", encoding="utf-8")
    _write_predictions(folder, predictions, class_names, indices, config)
    counts, columns = _confusion(predictions, class_names, indices)
    name, data, metrics = record["model"]["name"], record["data"], record["metrics"]
    where = Path(data["source"]).name + (f" ({data['split']})" if data["split"] else "")
    draw_confusion(
        counts,
        list(class_names),
        columns,
        folder / "confusion.png",
        title=f"{Path(name).name} on {where}: {metrics['accuracy']:.1%} of {metrics['images']:,} images right",
        provenance=in_a_line(record),
    )


def _confusion(predictions: Predictions, class_names: Sequence[str], indices: Sequence[int]) -> tuple[Any, list[str]]:
    """Images of each class by what they were taken for; the labels that the data does not have share one column."""
    import numpy as np

    classes, count = predictions.probabilities.shape[1], len(indices)
    found = predictions.probabilities.argmax(axis=1)
    whole = np.asarray(compute("confusion_matrix", found, predictions.labels, classes=classes)["confusion_matrix"])
    rows = whole[list(indices)]
    others = np.setdiff1d(np.arange(classes), indices)
    counts = np.concatenate([rows[:, list(indices)], rows[:, others].sum(axis=1, keepdims=True)], axis=1)
    if len(others) == 0:
        return counts[:, :count], list(class_names)
    return counts, [*class_names, f"{len(others):,} other label{'s' if len(others) > 1 else ''}"]


def _write_predictions(
    folder: Path, predictions: Predictions, class_names: Sequence[str], indices: Sequence[int], config: Any
) -> None:
    import pyarrow
    from pyarrow import csv, parquet

    found = predictions.probabilities.argmax(axis=1)
    name_of = dict(zip(indices, class_names, strict=True))
    rows = pyarrow.table(
        {
            "name": predictions.names,
            "class": [name_of[label] for label in predictions.labels.tolist()],
            "prediction": [name_of.get(label, str(config.id2label[label])) for label in found.tolist()],
            "right": found == predictions.labels,
            "probability": predictions.probabilities.max(axis=1),
            "probability of the class": predictions.probabilities[range(len(found)), predictions.labels],
        }
    )
    parquet.write_table(rows, folder / "predictions.parquet")
    csv.write_csv(rows, folder / "predictions.csv")


def _farewell(record: dict[str, Any], output: Path) -> str:
    metrics = record["metrics"]
    top = metrics[f"top_{TOP}_accuracy"]
    lines = [
        ["accuracy", f"{metrics['accuracy']:.2%}"],
        [f"top-{TOP} accuracy", "-" if top is None else f"{top:.2%}"],
        ["macro F1", f"{metrics['macro_f1']:.2%}"],
        [f"calibration error ({CALIBRATION_BINS} bins)", f"{metrics['expected_calibration_error']:.2%}"],
    ]
    left_out = len(record["data"]["left out"])
    note = f"\n{left_out} images could not be used; they are listed in {RECORD}\n" if left_out else ""
    files = "results.json, confusion.png, predictions.parquet and .csv"
    return f"\n{table(lines)}\n{note}\n{metrics['images']:,} images; {output.absolute()} has {files}"
