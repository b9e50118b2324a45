"""The numerics: pure functions on tensors. No transformers import."""

from .delta import delta
from .gla import gla
from .gsa import gsa
from .prefix import prefix_gla, prefix_linear_attention
from .prefix_delta import prefix_delta
from .window import window_attention

__all__ = [
    "delta",
    "gla",
    "gsa",
    "prefix_delta",
    "prefix_gla",
    "prefix_linear_attention",
    "window_attention",
]
