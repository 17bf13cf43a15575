"""What a check of a data set says."""

from dataclasses import dataclass, field

EXAMPLES = 5


@dataclass(frozen=True)
class Finding:
    """Something that somebody should know before training.

    Args:
        what: A sentence.
        training: What training does about it.
        problem: Whether it is one; otherwise a note.
        examples: Names of some images, or reasons.
        count: How many images it concerns.
    """

    what: str
    training: str
    problem: bool
    examples: list[str] = field(default_factory=list)
    count: int = 0
