"""What stops a training run, told in one sentence."""


class TrainingRefusedError(ValueError):
    """A run cannot start as it was asked for; the message says why and what to do. Nothing has been written."""


class TrainingStoppedError(RuntimeError):
    """A run was stopped before its end: by a loss that is not finite, or from outside."""
