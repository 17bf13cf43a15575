"""Pictures: PNG files drawn with matplotlib, which is loaded when the first one is drawn."""

from .attention import draw_attention
from .confusion import draw_confusion
from .depth_curves import draw_distance, draw_sinks
from .head_maps import draw_head_maps, draw_weight_maps
from .places import draw_places, draw_rollout
from .qkv import draw_qkv
from .whole_model import draw_all

__all__ = [
    "draw_all",
    "draw_attention",
    "draw_confusion",
    "draw_distance",
    "draw_head_maps",
    "draw_places",
    "draw_qkv",
    "draw_rollout",
    "draw_sinks",
    "draw_weight_maps",
]
