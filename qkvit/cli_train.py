"""`qkvit train`: the options of a training run; what it does is in `training/`."""

from typing import Annotated

import typer

from .errors import UserError


def train(
    recipe: Annotated[str, typer.Argument(help="A YAML file, or the name of a shipped recipe such as digits.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any field of the recipe or of TrainingArguments."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only plan: steps, operations, memory.")] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option("--allow", metavar="FIELD", help="May differ from the run that is resumed."),
    ] = None,
) -> None:
    """Train a model as a recipe says; with several processes: torchrun ... -m qkvit.training.train RECIPE."""
    from .training import TrainingRefusedError, TrainingStoppedError
    from .training import train as run

    try:
        run(recipe, settings, resume=resume, dry_run=dry_run, allow=allow or [])
    except TrainingRefusedError as error:
        raise UserError(str(error)) from error
    except TrainingStoppedError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(getattr(error, "code", 1)) from error
