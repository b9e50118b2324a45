"""The cache of a looped model whose attention is recurrent: a state per layer and recurrence.

Beside keys and values by position there is one transformers cache per recurrence, which holds the
recurrent states and windows of all layers. A state cannot take a token back: tokens come in order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig

from ..errors import UsageError
from ..liger.layout import Layout, document_starts
from ..liger.state import cache_bytes
from .cache import CachedPlacement, RecurrentDepthCache
from .placement import Placement


class StatefulDepthCache(RecurrentDepthCache):
    """As `RecurrentDepthCache`, for layers with Liger attention; `sharing` concerns the others.

    - `config`: of the looped model, whose layer types say which layers have states.

    Every token must be given once and with the same number of recurrences.
    """

    def __init__(self, config: PreTrainedConfig, **settings: Any) -> None:
        super().__init__(**settings)
        self.tracks_depth = False  # all tokens are equally deep
        self.config = config
        self.states: dict[int, DynamicCache] = {}
        self.real = torch.zeros(0, 0, dtype=torch.bool)  # [B, places so far] on the CPU
        self._newest: CachedPlacement | None = None

    def states_at(self, step: int) -> DynamicCache:
        """States of one recurrence; those of prelude and coda are at 0."""
        if step not in self.states:
            self.states[step] = DynamicCache(config=self.config)
        return self.states[step]

    def place(self, positions: Tensor, **how: Any) -> CachedPlacement:
        """As in the base class, where each row's positions continue it.

        Raises `UsageError` if a position was there before.
        """
        before = self.lengths.clone()
        placed = super().place(positions, **how)
        if placed is not self._newest:
            where = placed.where
            if len(before) and ((where >= 0) & (where < before[:, None])).any():
                raise UsageError(
                    "a position is given again, and a recurrent state cannot take a token back; "
                    "start a new cache"
                )
            past = self.real.shape[1]
            self.real = torch.cat([self.real, where >= 0], 1) if past else where >= 0
            mask = None if self.real.all() else self.real.to(placed.device)
            placed.once("layout", lambda: Layout("liger", past, mask))
            self._newest = placed
        return placed

    def trim(self, length: int | Tensor) -> None:
        """Forget everything, or nothing. Raises `UsageError` for anything between."""
        wanted = torch.minimum(self.lengths, torch.as_tensor(length).cpu())
        if torch.equal(wanted, self.lengths):
            return
        if wanted.any():
            raise UsageError(
                "a recurrent state cannot take tokens back: trim to 0, or to the length there is"
            )
        super().trim(0)
        self.states.clear()
        self.real = self.real[:, :0]
        self._newest = None

    def select(self, rows: Tensor) -> None:
        super().select(rows)
        self.real = self.real[rows.cpu()]
        for states in self.states.values():
            states.reorder_cache(rows)
        self._newest = None

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys, values and states."""
        return super().nbytes + sum(cache_bytes(states) for states in self.states.values())

    @property
    def is_initialized(self) -> bool:
        return bool(self.real.numel())

    @property
    def is_croppable(self) -> bool:
        return False


def layout_of(place: Placement) -> Layout:
    """What Liger attention must know of the tokens of one pass."""

    def make() -> Layout:
        real = place.where >= 0
        mask = None if real.all() else real.to(place.device)
        packed = place.documents is not None
        starts = document_starts(place.positions, len(real)) if packed else None
        return Layout("liger", 0, mask, starts)

    return place.once("layout", make)
