"""`train`: a recipe, from its file to a finished model. `python -m qkvit.training.train` does it on many processes."""

import traceback
from pathlib import Path
from typing import Any

from ..errors import TrainingStoppedError
from ..recipe import Recipe

__all__ = ["train"]


def train(
    recipe: str | Path | dict[str, Any] | Recipe,
    settings: list[str] | None = None,
    *,
    resume: bool = False,
    dry_run: bool = False,
    allow: tuple[str, ...] | list[str] = (),
) -> dict[str, Any]:
    """Train a model as a recipe says.

    Args:
        recipe: A YAML file, the name of a shipped recipe, what such a file holds, or a `Recipe`.
        settings: "key=value" for any field of the recipe or of `TrainingArguments`.
        resume: Go on from the newest whole checkpoint in the recipe's output_dir, to the bit.
        dry_run: Only plan.
        allow: Fields that may have changed since the run that is resumed began.

    Returns:
        What is in metrics.json: loss and accuracy by split; or the plan's numbers.

    Raises:
        TrainingRefusedError: something is wrong with the request; nothing has been written.
        TrainingStoppedError: the loss is not finite, SIGTERM came (a checkpoint has been saved), or no space is left.

    Example:

    ```python
    >>> small = ["output_dir=run", "max_steps=2", "num_hidden_layers=1", "report_to=none"]
    >>> metrics = train("digits", small)
    digits:
      data        1,438 images, 10 classes, 8 x 8 pixels
    ...
    >>> metrics["validation"]["images"]
    359
    >>> from transformers import AutoModelForImageClassification
    >>> AutoModelForImageClassification.from_pretrained("run").config.num_labels
    10

    ```
    """
    from ..disk_errors import told
    from ..run import Run

    run = Run(Recipe.load(recipe, settings), name=recipe if isinstance(recipe, (str, Path)) else "RECIPE.yaml")
    if dry_run:
        return run.dry_run()
    try:
        with told(run.output):
            return run.train(resume=resume, allow=tuple(allow))
    except TrainingStoppedError as error:
        _let_go(error)
        raise


def _let_go(error: BaseException | None) -> None:
    """Free what the frames of an error hold: the model on its device, and processes that load images.

    A notebook keeps its last error. Left to the garbage collector, each such process takes five seconds to end.
    """
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__
