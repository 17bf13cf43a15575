"""Exact statistics of attention, without an N x N matrix."""

from .attention_rollout import map_rollout, model_rollout, rollout
from .groups import FUSED
from .projection import PreparedProjection
from .statistics import AttentionStatistics, attention_statistics

__all__ = [
    "FUSED",
    "AttentionStatistics",
    "PreparedProjection",
    "attention_statistics",
    "map_rollout",
    "model_rollout",
    "rollout",
]
