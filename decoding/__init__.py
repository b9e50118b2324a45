"""How tokens are chosen: works with any causal LM of transformers."""

from .generate import Generation, generate
from .remedies import REMEDIES
from .repetition import DRY, RPG, DittoCap, NoRepeatNGram, RepetitionPenalty, RPGReleased
from .sampling import SAMPLERS

__all__ = [
    "DRY",
    "REMEDIES",
    "RPG",
    "SAMPLERS",
    "DittoCap",
    "Generation",
    "NoRepeatNGram",
    "RPGReleased",
    "RepetitionPenalty",
    "generate",
]
