"""Whether a model was trained on the images that it is measured on, as far as the recipe beside it says."""

from pathlib import Path

import yaml

from .training.recipe import BUILT_IN

RECIPE = "recipe.yaml"


def said_of_seen_images(model: str, data: str, split: str | None) -> str | None:
    """A sentence, where the recipe that `qkvit train` left beside the model names the same source and split; else None.

    Example:

    ```python
    >>> Path("run").mkdir()
    >>> _ = Path("run", "recipe.yaml").write_text("data: {source: photos, held_out: 0.2}")
    >>> said_of_seen_images("run", "photos", None)
    'run/recipe.yaml trains on 80 % of photos: what the model makes of the images held out is in run/metrics.json'
    >>> said_of_seen_images("run", "others", None)

    ```
    """
    for folder in (Path(model), Path(model).parent):  # a checkpoint and averaged weights are in the run's folder
        try:
            of_data = yaml.safe_load((folder / RECIPE).read_text(encoding="utf-8"))["data"]
            source, trained, validation = of_data["source"], of_data.get("train_split"), of_data.get("validation_split")
            share = "some" if of_data.get("images") is not None else f"{100 * (1 - float(of_data['held_out'])):g} %"
            is_same = source not in BUILT_IN and (source == data or Path(source).resolve() == Path(data).resolve())
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
            continue
        if not is_same or split not in (None, trained):
            return None
        of_what, elsewhere = (f"{share} of {data}", "images held out")
        if validation is not None:
            of_what, elsewhere = f"{data}", f"split {validation!r}"
        results = folder / "metrics.json"
        return f"{folder / RECIPE} trains on {of_what}: what the model makes of the {elsewhere} is in {results}"
    return None
