"""Remedies against repetition: logits processors that also work inside any `model.generate`."""

from .ditto_cap import DittoCap
from .dry import DRY
from .no_repeat_ngram import NoRepeatNGram
from .repetition_penalty import RepetitionPenalty
from .rpg import RPG
from .rpg_released import RPGReleased

__all__ = ["DRY", "RPG", "DittoCap", "NoRepeatNGram", "RPGReleased", "RepetitionPenalty"]
