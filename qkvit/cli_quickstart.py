"""`qkvit quickstart`: the options of the first run; what it does is in `quickstart.py`."""

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the training run.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace the folder of an earlier quickstart.")] = False,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only see that everything runs: one short pass, a poor model.")
    ] = False,
) -> None:
    """Train a small model on handwritten digits, check it and look inside: minutes on two cores, no network."""
    from .quickstart import run_quickstart

    run_quickstart(output, seed=seed, force=force, quick=quick)
