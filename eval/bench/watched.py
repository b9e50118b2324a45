"""A looped model that notes what a sampler asks of it, and the same work without a sampler."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.recurrent_depth.interface import LoopedModel
from linearize.recurrent_depth.looped import LoopedCausalLM
from linearize.recurrent_depth.placement import Placement

from .timing import wait


@dataclass(frozen=True)
class Call:
    """One pass of `part` over `tokens` tokens of `rows` rows that see `columns` positions."""

    part: str
    rows: int
    tokens: int
    columns: int
    step: int = 0


class Watched:
    """Passes everything on.

    - `prompt_wall`, `prompt_cpu`: clocks when tokens are given to the prelude for the second time,
      which is when the prompt is done, or when a wave begins beside it; 0 before.
    - `calls`: of everything after that. `cache`: the one in use.
    """

    def __init__(self, model: LoopedModel) -> None:
        self.model = model
        self.calls: list[Call] = []
        self.prompt_wall = self.prompt_cpu = 0.0
        self.cache: Any = None
        self._embedded = 0
        self._seen: tuple[Tensor, int, int] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def new_cache(self, **how: Any) -> Any:
        self.cache = self.model.new_cache(**how)
        return self.cache

    def embed(self, ids: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        self._embedded += 1
        if self._embedded == 2:
            wait()
            self.prompt_wall, self.prompt_cpu = time.perf_counter(), time.process_time()
        self._note("prelude", positions)
        return self.model.embed(ids, positions, cache)

    def core_step(
        self, z: Tensor, e: Tensor, positions: Tensor, cache: Any = None, step: int = 0
    ) -> Tensor:
        self._note("core", positions, step)
        return self.model.core_step(z, e, positions, cache, step)

    def decode(
        self, z: Tensor, positions: Tensor, cache: Any = None, *, logits_to_keep: int = 0
    ) -> Tensor:
        self._note("coda", positions)
        return self.model.decode(z, positions, cache, logits_to_keep=logits_to_keep)

    def _note(self, part: str, positions: Tensor, step: int = 0) -> None:
        if not self.prompt_wall:
            return
        if self._seen is None or self._seen[0] is not positions:
            self._seen = (positions, int((positions >= 0).sum()), int(positions.max()) + 1)
        self.calls.append(Call(part, len(positions), *self._seen[1:], step))


class _Alone(Placement):
    """Tokens spread evenly over their rows, which attend to stored keys: nothing is written,
    nothing masked, nothing left over."""

    def __init__(self, model: LoopedCausalLM, call: Call) -> None:
        width = -(-call.tokens // call.rows)
        super().__init__(torch.arange(call.tokens)[None], model.device)
        self.rows, self.each, self.columns = call.rows, width, call.columns

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, part: str, layer: int, step: int = 0, **how: Any
    ) -> Tensor:
        queries = F.pad(q[0], (0, 0, 0, 0, 0, self.rows * self.each - len(q[0])))
        keys = self.once((k.shape[2:], k.dtype), lambda: self._random(k))
        seen = F.scaled_dot_product_attention(
            queries.unflatten(0, (self.rows, self.each)).transpose(1, 2),
            keys.transpose(1, 2),
            keys.transpose(1, 2),
            enable_gqa=q.shape[2] != k.shape[2],
        )
        return seen.transpose(1, 2).flatten(0, 1)[None, : q.shape[1]]

    def _random(self, like: Tensor) -> Tensor:
        return torch.randn(
            self.rows, self.columns, *like.shape[2:], dtype=like.dtype, device=like.device
        )


def bare(model: LoopedModel, calls: Iterable[Call]) -> Callable[[], None] | None:
    """The layers of these calls in a plain loop; None for a model whose layers are not known."""
    if not isinstance(model, LoopedCausalLM):
        return None
    calls, where, states = list(calls), {}, {}
    weight = model.get_input_embeddings().weight
    for call in calls:
        shape = (call.rows, call.tokens, call.columns)
        where[call] = where.get(shape) or where.setdefault(shape, _Alone(model, call))
        if call.tokens not in states:
            size = (1, call.tokens, model.loop.width)
            states[call.tokens] = torch.randn(size, dtype=weight.dtype, device=weight.device)

    def loop() -> None:
        for call in calls:
            x, place = states[call.tokens], where[call]
            if call.part == "core":
                model.core(x, x, place, call.step)
            elif call.part == "coda":
                model.coda(x, place)
            else:
                model.prelude(x, place)

    return loop
