"""The options of a training run: for `qkvit train`, and for `python -m qkvit.training.train`, which launchers start."""

import sys
from typing import Annotated, Any, NoReturn

import typer

from .errors import TrainingInterruptedError, TrainingRefusedError, TrainingStoppedError
from .processes.last_words import leave, leave_broken
from .processes.world import end_together, processes

MODULE = "python -m qkvit.training.train"


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
    try:
        check_first(recipe, settings, resume=resume, dry_run=dry_run)
        from .train import train as run

        run(recipe, settings, resume=resume, dry_run=dry_run, allow=allow or [])
    except KeyboardInterrupt as stop:  # typer would leave out where the run can go on
        raise TrainingInterruptedError(str(stop) or "stopped by ctrl-C") from None


def check_first(recipe: str, settings: list[str] | None, *, resume: bool, dry_run: bool, **_: Any) -> None:
    """Refuse what can be told before torch is loaded: a folder that holds a run already.

    Raises:
        TrainingRefusedError: it does, or there is no such recipe.
    """
    from .early import check_output

    if not resume and not dry_run:
        check_output(recipe, settings or [])


def said_of_usage(message: str) -> str:
    """What typer says of arguments that it does not expect, and how settings are written.

    Example:

    ```python
    >>> said_of_usage("Got unexpected extra argument (b=2)")
    'Got unexpected extra argument (b=2): each setting is --set KEY=VALUE, with a --set of its own'

    ```
    """
    if "unexpected extra argument" in message:
        return f"{message}: each setting is --set KEY=VALUE, with a --set of its own"
    return message


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run and exit: 0 success; 2 a request that cannot be met, a bad image or a full disk; 130 and 143 stopped by
    ctrl-C and by SIGTERM; 1 a loss that is not finite, and all else."""
    app = typer.Typer(
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.command()(train)
    try:
        result = app(arguments, standalone_mode=False, prog_name=MODULE)
    except TrainingRefusedError as error:
        leave(str(error), 2)
    except TrainingStoppedError as error:
        leave(str(error), error.code)
    except Exception as error:
        if hasattr(error, "format_message"):  # what typer refuses; its classes are not public
            leave(f"{said_of_usage(error.format_message().rstrip('.'))}; see {MODULE} --help", 2)
        if processes() == 1:
            raise
        leave_broken(error)
    end_together()
    sys.exit(result if isinstance(result, int) else 0)
