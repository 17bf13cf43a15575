"""Where the numbers of a run are sent besides the screen: `report_to` of TrainingArguments, checked before the run."""

import difflib

from transformers.integrations import integration_utils

from ..errors import TrainingRefusedError


def check_reporters(names: list[str]) -> None:
    """Refuse what transformers does not know, or what needs a package that is not there.

    Args:
        names: "tensorboard", "trackio", "wandb", ...

    Example:

    ```python
    >>> check_reporters(["tensorbord"])
    Traceback (most recent call last):
    ...
    qkvit.training.errors.TrainingRefusedError: report_to=tensorbord is not known; did you mean tensorboard?

    ```
    """
    known = integration_utils.INTEGRATION_TO_CALLBACK
    for name in names:
        if name is None:
            raise TrainingRefusedError("report_to=null is not known; write none")
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean {near[0]}?" if near else f"use one of {', '.join(sorted(known))}, or none"
            raise TrainingRefusedError(f"report_to={name} is not known; {advice}")
        available = getattr(integration_utils, f"is_{name}_available", None)
        if available is not None and not available():
            raise TrainingRefusedError(
                f"report_to={name} needs a package that is not installed; run: pip install {name}, or set"
                " report_to=none"
            )
