"""How tokens are chosen: works with any causal LM of transformers."""

from .generate import Generation, generate
from .remedies import REMEDIES
from .repetition import DRY, DittoCap, NoRepeatNGram, RepetitionPenalty, RPGReleased
from .sampling import SAMPLERS

__all__ = [
    "DRY",
    "REMEDIES",
    "SAMPLERS",
    "DittoCap",
    "Generation",
    "NoRepeatNGram",
    "RPGReleased",
    "RepetitionPenalty",
    "generate",
]
