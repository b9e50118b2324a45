"""A looped model at work on a batch: its cache, its rows, and a count of what it does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel

from .request import Request, Spent


class Depth:
    """Passes of a model over some rows of a request.

    - `sharing`: recurrences that the cache keeps; see the model's `new_cache`.
    - `init_scale`: of the states that tokens start from; 0 is zeros. Each row draws its own, so
      that they do not depend on the rows beside it.
    - `ahead`: tokens beyond the last one that may enter the cache.

    `rows` are the request's rows still at work, in the order of the cache.
    """

    def __init__(
        self, model: LoopedModel, request: Request, *, sharing: Any, init_scale: float, ahead: int
    ) -> None:
        if not 0 <= init_scale < float("inf"):
            raise UsageError(f"init_scale={init_scale} must be a finite number from 0")
        self.model, self.spent = model, Spent()
        self.rows = list(range(len(request.input_ids)))
        self.device = request.input_ids.device
        length = request.input_ids.shape[1] + request.max_new_tokens + ahead
        self.cache = model.new_cache(sharing=sharing, max_length=length)
        self._where: Tensor | None = None
        self._scale = init_scale
        self._generators = (
            None
            if request.generators is None
            else [
                torch.Generator(self.device).manual_seed(g.initial_seed())
                for g in request.generators
            ]
        )

    def at(self, where: Tensor) -> None:
        """The next passes are about tokens at `where` [B, W], on the CPU, -1 = unused."""
        if where is not self._where:
            self._where, self._tokens = where, int((where >= 0).sum())
            # One tensor object for all of them: the model derives its masks from it once.
            self._positions = where.to(self.device)

    def initial(self, where: Tensor) -> Tensor:
        """[B, W, h] states for tokens at `where`."""
        z = self.model.initial_state(tuple(where.shape), scale=0.0)
        if self._scale:
            for i, row in enumerate(self.rows):
                real = (where[i] >= 0).nonzero()[:, 0].to(z.device)
                z[i, real] = self.fresh(row, len(real))
        return z

    def fresh(self, row: int, count: int) -> Tensor:
        """[count, h] states for tokens of a row of the request."""
        generator = None if self._generators is None else self._generators[row]
        return self.model.initial_state((count,), scale=self._scale, generator=generator)

    def embed(self, ids: Tensor) -> Tensor:
        """The prelude: ids [B, W] -> e [B, W, h]."""
        return self.model.embed(ids, self._positions, self.cache)

    def core(self, z: Tensor, e: Tensor, step: int) -> Tensor:
        """One recurrence, counted; `step` from 0."""
        self.spent.core_passes += 1
        self.spent.core_tokens += self._tokens
        return self.model.core_step(z, e, self._positions, self.cache, step)

    def decode(self, z: Tensor, keep: int = 1) -> Tensor:
        """The coda: z [B, W, h] -> logits [B, keep, V]; 0 keeps all."""
        return self.model.decode(z, self._positions, self.cache, logits_to_keep=keep)

    def fixed(self, ids: Tensor, where: Tensor, steps: int, keep: int = 1) -> Tensor:
        """Logits [B, keep, V] of ids [B, W] after `steps` recurrences from fresh states."""
        self.at(where)
        e, z = self.embed(ids), self.initial(where)
        for step in range(steps):
            z = self.core(z, e, step)
        return self.decode(z, keep)

    def trim(self, lengths: Tensor) -> None:
        """Forget tokens at positions >= lengths [B]."""
        self.model.trim(self.cache, lengths)

    def keep(self, stay: list[bool]) -> None:
        """Drop the rows that do not stay."""
        if all(stay):
            return
        left = [i for i, here in enumerate(stay) if here]
        self.rows = [self.rows[i] for i in left]
        if left:
            self.cache.select(torch.tensor(left))
