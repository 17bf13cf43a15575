"""Which of the images that a model is measured on it was trained on, as far as the recipe beside it says."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from .data.splits import canonical
from .errors import UserError
from .training.errors import TrainingRefusedError
from .training.recipe import BUILT_IN, Data
from .training.recipe_types import build

RECIPE = "recipe.yaml"
HELD_OUT = "validation"


def said_of_seen_images(model: str, data: str, split: str | None) -> str | None:
    """A sentence, where the recipe that `qkvit train` left beside the model names the same source and split; else None.

    Example:

    ```python
    >>> Path("run").mkdir()
    >>> _ = Path("run", "recipe.yaml").write_text("data: {source: photos, held_out: 0.2}")
    >>> said_of_seen_images("run", "photos", None)
    'run/recipe.yaml trains on 80 % of photos: what the model makes of the images held out is in run/metrics.json, and
    --split validation measures on them alone'
    >>> said_of_seen_images("run", "others", None)

    ```
    """
    folder, trained = _trained_on(model, data)
    if trained is None or split not in (None, trained.train_split):
        return None
    share = "some" if trained.images is not None else f"{100 * (1 - trained.held_out):g} %"
    of_what, elsewhere, way = f"{share} of {data}", "images held out", ""
    if trained.validation_split is not None:
        of_what, elsewhere = data, f"split {trained.validation_split!r}"
    elif trained.train_split is None:
        way = f", and --split {HELD_OUT} measures on them alone"
    results = f"{folder / 'metrics.json'}{way}"
    return f"{folder / RECIPE} trains on {of_what}: what the model makes of the {elsewhere} is in {results}"


def held_out_images(model: str, data: str, split: str | None, on_bad_image: Any = "stop") -> Any:
    """What the recipe beside a model held out of an undivided source, where split "validation" is asked for.

    Returns:
        A source; None where that recipe is not there, is of other data, or names splits.

    Raises:
        UserError: the data are not those that the run had, by their labels and a sample of their bytes; no record says
            what it had; or an image has several labels.
    """
    folder, trained = _trained_on(model, data)
    if trained is None or canonical(str(split)) != HELD_OUT or trained.validation_split or trained.train_split:
        return None
    from .data.chosen_source import ChosenSource
    from .training.images.sources import open_splits
    from .training.run_folder import read_record

    try:
        splits = open_splits(replace(trained, source=data))
    except TrainingRefusedError as error:
        raise UserError(str(error)) from error
    if splits.multi_label:
        raise UserError(f"the labels of {data} are lists (multi-label), and accuracy wants one label an image")
    then, now = read_record(folder).get("data", {}), splits.fingerprint()
    if HELD_OUT not in then:
        raise UserError(
            f"there is no run.json in {folder} that says which images of {data} the run held out; leave --split out to"
            " measure on all of them"
        )
    if any(then.get(part) != now.get(part) for part in ("classes", HELD_OUT)):
        raise UserError(
            f"{data} has changed since the run in {folder} began, and which images it held out cannot be told any more;"
            " leave --split out to measure on all of them"
        )
    held: Any = splits.validation
    return ChosenSource(held.source, held.indices, split=HELD_OUT, on_bad_image=on_bad_image)


def _trained_on(model: str, data: str) -> tuple[Path, Data | None]:
    """The data of the recipe beside a model, and its folder, where it names the same source; else None."""
    is_in_a_run = re.fullmatch(r"averaged|checkpoint-\d+", Path(model).name)
    for folder in (Path(model), Path(model).parent) if is_in_a_run else (Path(model),):
        try:
            recipe = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))
            of_data = build(Data, recipe["data"], "data")
            source = recipe["data"]["source"]
            is_same = source not in BUILT_IN and (source == data or Path(source).resolve() == Path(data).resolve())
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        return folder, of_data if is_same else None
    return Path(model), None
