"""See and measure queries, keys, values and attention."""

from .head_facts import HeadFacts, head_facts
from .intervention import intervene
from .recording import Recording, record
from .replacements import Apply, Given, Mean, Noise, OtherImage, Replacement, Zero
from .token_layout import TokenLayout

__all__ = [
    "Apply",
    "Given",
    "HeadFacts",
    "Mean",
    "Noise",
    "OtherImage",
    "Recording",
    "Replacement",
    "TokenLayout",
    "Zero",
    "head_facts",
    "intervene",
    "record",
]
