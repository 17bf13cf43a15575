"""What stops a training run, told in one sentence."""


class TrainingRefusedError(ValueError):
    """A run cannot start, or go on, as it was asked for; the message says why and what to do. Nothing was lost."""


class TrainingStoppedError(RuntimeError):
    """A run was stopped before its end: by a loss that is not finite, or from outside."""
