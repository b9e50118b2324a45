"""How tokens are chosen: works with any causal LM of transformers."""

from .generate import Generation, generate
from .sampling import SAMPLERS

__all__ = ["SAMPLERS", "Generation", "generate"]
