"""See and measure queries, keys, values and attention."""

from .head_facts import HeadFacts, head_facts
from .intervention import intervene
from .recording import Recording, record
from .replacements import Apply, Given, Mean, Noise, OtherImage, Replacement, Zero
from .statistics import FUSED, AttentionStatistics, attention_statistics, model_rollout, rollout
from .token_layout import TokenLayout

__all__ = [
    "FUSED",
    "Apply",
    "AttentionStatistics",
    "Given",
    "HeadFacts",
    "Mean",
    "Noise",
    "OtherImage",
    "Recording",
    "Replacement",
    "TokenLayout",
    "Zero",
    "attention_statistics",
    "head_facts",
    "intervene",
    "model_rollout",
    "record",
    "rollout",
]
