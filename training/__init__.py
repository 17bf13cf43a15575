"""Training: recipes, data, augmentation, optimisation, and the Trainer that goes on exactly where it was stopped."""

from .errors import TrainingRefusedError, TrainingStoppedError
from .recipe import Recipe
from .train import train

__all__ = ["Recipe", "TrainingRefusedError", "TrainingStoppedError", "train"]
