"""What stops a training run, told in one sentence."""

import signal


class TrainingRefusedError(ValueError):
    """A run cannot start, or go on, as it was asked for; the message says why and what to do. Nothing was lost."""


class TrainingStoppedError(RuntimeError):
    """A run was stopped before its end: by a loss that is not finite, or from outside.

    Attributes:
        code: The exit status of the command.
    """

    code = 1


class TrainingInterruptedError(TrainingStoppedError):
    """ctrl-C, on the command line; `train` itself raises KeyboardInterrupt."""

    code = 128 + signal.SIGINT


class TrainingTerminatedError(TrainingStoppedError):
    """SIGTERM; a checkpoint has been saved."""

    code = 128 + signal.SIGTERM
