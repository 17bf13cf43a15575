"""What can be refused before a recipe is read in full, which takes the seconds of loading torch and the data."""

from pathlib import Path

from .processes.world import rank
from .recipe import read_yaml
from .run_folder import check_new


def check_output(recipe: str | Path, settings: list[str]) -> None:
    """Refuse the folder of a run that is there already; whatever else is wrong is told when the recipe is checked.

    Raises:
        TrainingRefusedError: it holds a run, or other things.
    """
    if rank() == 0:
        check_new(_output(recipe, settings))


def _output(recipe: str | Path, settings: list[str]) -> Path:
    """As good as can be told without reading the settings in full; it is looked at again when they are."""
    values, name = read_yaml(recipe)
    arguments = values.get("arguments")
    output = arguments.get("output_dir") if isinstance(arguments, dict) else None
    name = values.get("name") or name
    for setting in settings:
        key, _, text = setting.partition("=")
        key = key.strip().lstrip("-")
        if key in ("output_dir", "arguments.output_dir"):
            output = text
        elif key == "name":
            name = text
    return Path(str(output or f"runs/{name}"))
