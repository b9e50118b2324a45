"""Rows of logits from which no token can be chosen: found, told, and made harmless."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from transformers import LogitsProcessor


class Finite(LogitsProcessor):
    """Tells of rows that hold NaN or +inf or nothing but -inf, and makes them uniform.

    The loop can then go on for the other rows of the batch; what follows in a broken row means
    nothing.

    Args:
        found: called with the row's index and the number of ids in it, padding counted.
    """

    def __init__(self, found: Callable[[int, int], None]) -> None:
        self.found = found

    def for_row(self, row: int) -> Finite:
        """One for a batch that holds this row alone."""
        return Finite(lambda _, ids: self.found(row, ids))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` int64 `[B, T]`, `scores` `[B, V]`; returns `scores` or a changed copy."""
        broken = ~scores.amax(-1).isfinite()  # the largest of a row with NaN is NaN
        rows = broken.nonzero()[:, 0].tolist()
        if not rows:
            return scores
        for row in rows:
            self.found(row, input_ids.shape[1])
        # Log probabilities of a uniform choice: a search neither prefers nor avoids such a row.
        return torch.where(broken[:, None], -math.log(scores.shape[-1]), scores)
