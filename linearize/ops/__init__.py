"""The numerics: pure functions on tensors. No transformers import."""

from .gla import gla
from .prefix import prefix_gla, prefix_linear_attention
from .window import window_attention

__all__ = ["gla", "prefix_gla", "prefix_linear_attention", "window_attention"]
