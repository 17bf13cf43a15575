"""The section `distillation` of a recipe."""

from dataclasses import dataclass
from typing import Literal


@dataclass
class Distillation:
    """Learning from another model.

    Args:
        teacher: A folder or Hub id of a classifier of the same classes (`AutoModelForImageClassification`). `None`: no
            distillation.
        kind: "hard": cross-entropy with the teacher's choice (DeiT, Touvron et al. 2021, arXiv 2012.12877), or "soft":
            the Kullback-Leibler divergence from its probabilities (Hinton et al. 2015, arXiv 1503.02531).
        alpha: The teacher's share of the loss, in [0, 1].
        temperature: tau, of "soft".
        match_labels: "by_name": the teacher has the same class names, in any order; "by_order": its class i is our
            class i, whatever it is called.
    """

    teacher: str | None = None
    kind: Literal["hard", "soft"] = "hard"
    alpha: float = 0.5
    temperature: float = 1.0
    match_labels: Literal["by_name", "by_order"] = "by_name"
