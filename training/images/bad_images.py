"""Images that cannot be used: from the worker process that meets one to the sentence that stops a run, or to the list.

They travel as items: an exception that is raised in a worker reaches the main process as a page of text.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from ..errors import TrainingStoppedError
from ..run_folder import write_aside

LIST = "bad_images.json"


@dataclass(frozen=True)
class Unusable:
    """In the place of an image.

    Args:
        name: What it is called.
        reason: Why it cannot be used, with its name.
        unreachable: Whether that is no fault of its own, but of what it is read from.
    """

    name: str
    reason: str
    unreachable: bool = False


class BadImageStopError(TrainingStoppedError):
    """A run met an image that cannot be used, and its recipe says to stop."""

    code = 2

    def __init__(self, bad: Unusable) -> None:
        super().__init__(
            f"{bad.reason}; repair it and go on with --resume --allow data, or leave such images out with --set"
            " on_bad_image=skip --allow on_bad_image --resume"
        )


class UnreachableImagesError(TrainingStoppedError):
    """What holds the images does not answer: a run stops, whatever its recipe says of bad images."""

    def __init__(self, unread: Unusable) -> None:
        super().__init__(f"{unread.reason}, with --resume")


def _stop(item: Unusable) -> TrainingStoppedError:
    return UnreachableImagesError(item) if item.unreachable else BadImageStopError(item)


def check_usable(micro_batches: Iterable[Any]) -> None:
    """Stop at a batch that holds an image of which the recipe says "stop"."""
    for batch in micro_batches:
        if "unusable" in batch:
            raise _stop(batch["unusable"])


def usable(items: Iterable[Any], images: Any) -> list[Any]:
    """Of the items of an `EvaluationImages`, those that can be used; the others are listed in it, or stop the run."""
    kept = []
    for item in items:
        if not isinstance(item, Unusable):
            kept.append(item)
        elif item.unreachable or not images.skip_bad:
            raise _stop(item)
        else:
            images.bad.setdefault(item.name, item.reason)
    return kept


def gathered(bad: dict[str, str]) -> dict[str, str]:
    """Those of all processes, by name; every process has to ask."""
    distributed = torch.distributed
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return dict(sorted(bad.items()))
    parts: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(parts, bad)
    return dict(sorted((name, reason) for part in parts for name, reason in part.items()))


def read_list(output: Path) -> dict[str, str]:
    """What `BadImageList` wrote before a run was stopped."""
    file = output / LIST
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


class BadImageList(TrainerCallback):
    """Writes the list whenever a checkpoint is saved.

    Args:
        bad: Reasons by name, filled while the run goes.
    """

    def __init__(self, bad: dict[str, str]) -> None:
        self.bad = bad

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        bad = gathered(self.bad)
        if bad and args.should_save:
            # In ASCII, as json has it: a file's name need not be UTF-8, and such a one cannot be written otherwise.
            write_aside(Path(args.output_dir) / LIST, json.dumps(bad, indent=2) + "\n")
