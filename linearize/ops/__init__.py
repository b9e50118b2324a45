"""The numerics: pure functions on tensors. No transformers import."""

from .gla import gla
from .window import window_attention

__all__ = ["gla", "window_attention"]
