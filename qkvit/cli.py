"""The command line. A command is a function in a file of its own, `cli_NAME.py`, and one line here.

Commands import what is heavy when they run, and raise `UserError` for what a user can put right.
"""

import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import Annotated, Any, NoReturn

import typer

from .cli_convert import convert
from .cli_data import data
from .cli_evaluate import evaluate
from .cli_quickstart import quickstart
from .cli_statistics import statistics
from .cli_train import train
from .errors import REFUSALS, UserError
from .option_names import as_options
from .training.command import said_of_usage
from .version import __version__

# What a function calls an argument, where the option has another name.
_OTHER_NAMES = {"family": "to"}

_STOPPED = 128 + signal.SIGINT

app = typer.Typer(
    name="qkvit",
    help="QKViT: a Vision Transformer that shows its queries, keys, values and attention.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _told(command: Callable[..., Any]) -> Callable[..., Any]:
    """A command whose errors name its options, where functions beneath it name their arguments."""

    @functools.wraps(command)
    def told(**options: Any) -> Any:
        try:
            return command(**options)
        except UserError as error:
            raise UserError(as_options(str(error), options, _OTHER_NAMES)) from error

    return told


for _command in (quickstart, train, convert, evaluate, statistics):
    app.command()(_told(_command))
app.add_typer(data, name="data")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qkvit {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    pass


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit: 0 success, 2 a user's error, 130 stopped with ctrl-C, 143 ended by SIGTERM.

    1: problems that `data check` found, training whose loss is not finite, or a defect of ours, with its traceback.
    """
    signal.signal(signal.SIGTERM, _stop)  # so that a command that is ended cleans up behind itself
    try:
        result: Any = app(arguments, standalone_mode=False, prog_name="qkvit")
        if result == _STOPPED:  # so typer answers ctrl-C; older releases raise Abort
            raise KeyboardInterrupt
    except (KeyboardInterrupt, typer.Abort):
        _leave("\nstopped", _STOPPED)
    except UserError as error:
        _leave(f"error: {error}", 2)
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        _leave(f"error: {error.strerror}: {error.filename}" if error.filename else f"error: {error.strerror}", 2)
    except Exception as error:
        # What typer refuses: an unknown command or option, a value of the wrong type. Its classes are not public.
        if not hasattr(error, "format_message"):
            raise
        said = error.format_message().rstrip(".")
        if not said:  # the help has been printed
            sys.exit(2)
        command = getattr(getattr(error, "ctx", None), "command_path", "qkvit")
        said = said_of_usage(said) if command.endswith(" train") else said
        _leave(f"error: {said}; see {command} --help", 2)
    sys.exit(result if isinstance(result, int) else 0)


def _stop(number: int, frame: Any) -> NoReturn:
    os.write(2, b"\nstopped\n")  # print may be at work already
    sys.exit(128 + number)


def _leave(message: str, code: int) -> NoReturn:
    typer.echo(message, err=True)
    sys.exit(code)
