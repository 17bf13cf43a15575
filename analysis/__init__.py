"""See and measure queries, keys, values and attention."""

from .head_facts import HeadFacts, head_facts
from .token_layout import TokenLayout

__all__ = ["HeadFacts", "TokenLayout", "head_facts"]
