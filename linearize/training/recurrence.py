"""How many recurrences a looped model is trained with, step by step."""

from __future__ import annotations

import math
import random

import torch

from ..recipe import RecurrenceSettings
from ..recurrent_depth.recurrences import draw_recurrences


def mean_at(step: int, steps: int, settings: RecurrenceSettings) -> int:
    """The mean of the draw in step 1 .. `steps`: from 1 up to `settings.mean`, rounded up.

    A curriculum as in arXiv 2511.07384: over the first `ramp` of the steps, in a straight line or,
    as `1-sqrt`, low for longer, which costs less.
    """
    done = 1.0 if not settings.ramp else min(1.0, (step - 1) / (settings.ramp * steps))
    share = done if settings.shape == "linear" else 1 - math.sqrt(1 - done)
    return math.ceil(1 + (settings.mean - 1) * share)


def recurrences(
    step: int, steps: int, settings: RecurrenceSettings, *, seed: int
) -> tuple[int, int]:
    """(without gradient, with gradient) for a step, the same in every process and micro-batch.

    Drawn as `draw_recurrences` says; all carry gradient while the mean is below `backprop`.
    """
    mean = mean_at(step, steps, settings)
    # A string, not seed + step: two seeds must not share a stream.
    key = random.Random(f"recurrences/{seed}/{step}").getrandbits(63)
    generator = torch.Generator().manual_seed(key)
    drawn = draw_recurrences(mean, settings.backprop, generator=generator)
    return (0, sum(drawn)) if mean < settings.backprop else drawn
