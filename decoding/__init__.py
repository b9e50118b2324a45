"""How tokens are chosen: works with any causal LM of transformers."""

from . import recurrent_depth
from .beginning import Beginning, begin
from .generate import Generation, generate
from .remedies import REMEDIES
from .repetition import DRY, RPG, DittoCap, NoRepeatNGram, RepetitionPenalty, RPGReleased
from .sampling import SAMPLERS

__all__ = [
    "DRY",
    "REMEDIES",
    "RPG",
    "SAMPLERS",
    "Beginning",
    "DittoCap",
    "Generation",
    "NoRepeatNGram",
    "RPGReleased",
    "RepetitionPenalty",
    "begin",
    "generate",
    "recurrent_depth",
]
