"""Exact statistics of attention, without an N x N matrix."""

from .groups import FUSED
from .rollout import model_rollout, rollout
from .statistics import AttentionStatistics, attention_statistics

__all__ = ["FUSED", "AttentionStatistics", "attention_statistics", "model_rollout", "rollout"]
