"""See and measure queries, keys, values and attention."""

from .collect import collect
from .collected import Collected
from .intervention import intervene
from .recording import Recording, record
from .replacements import Apply, Given, Mean, Noise, OtherImage, Replacement, Zero
from .statistics import (
    FUSED,
    AttentionStatistics,
    PreparedProjection,
    attention_statistics,
    map_rollout,
    model_rollout,
    rollout,
)
from .token_layout import TokenLayout
from .weights import WeightStatistics, weight_statistics

__all__ = [
    "FUSED",
    "Apply",
    "AttentionStatistics",
    "Collected",
    "Given",
    "Mean",
    "Noise",
    "OtherImage",
    "PreparedProjection",
    "Recording",
    "Replacement",
    "TokenLayout",
    "WeightStatistics",
    "Zero",
    "attention_statistics",
    "collect",
    "intervene",
    "map_rollout",
    "model_rollout",
    "record",
    "rollout",
    "weight_statistics",
]
