"""Whether a model was trained on the images that it is measured on, as far as the recipe beside it says."""

from pathlib import Path

import yaml

RECIPE = "recipe.yaml"


def said_of_seen_images(model: str, data: str, split: str | None) -> str | None:
    """A sentence, where the recipe that `qkvit train` left beside the model names the same images; else None.

    Example:

    ```python
    >>> Path("run").mkdir()
    >>> _ = Path("run", "recipe.yaml").write_text("data: {source: photos, held_out: 0.2}")
    >>> said_of_seen_images("run", "photos", None)
    'run was trained on 80 % of these images: what it makes of those that were held out is in run/metrics.json'
    >>> said_of_seen_images("run", "others", None)

    ```
    """
    try:
        of_data = yaml.safe_load((Path(model) / RECIPE).read_text(encoding="utf-8"))["data"]
        same = of_data["source"] == data or Path(of_data["source"]).resolve() == Path(data).resolve()
        trained, validation = of_data.get("train_split"), of_data.get("validation_split")
        held_out = 0.0 if validation is not None else float(of_data["held_out"])
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return None
    if not same or split not in (None, trained):
        return None
    results = Path(model) / "metrics.json"
    if validation is not None:
        return f"{model} was trained on these images: what it makes of the split {validation!r} is in {results}"
    share = "some" if of_data.get("images") is not None else f"{100 * (1 - held_out):g} %"
    return f"{model} was trained on {share} of these images: what it makes of those that were held out is in {results}"
