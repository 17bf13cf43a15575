"""`qkvit train`: the command of `training/`, with this command line's errors."""

import functools
import sys
from typing import Any

import typer

from .errors import UserError
from .startup import load_models
from .training import TrainingRefusedError, TrainingStoppedError, command


@functools.wraps(command.train)
def train(**options: Any) -> None:
    try:
        command.check_first(**options)
        load_models()
        command.train(**options)
    except TrainingRefusedError as error:
        raise UserError(str(error)) from error
    except TrainingStoppedError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.code)
