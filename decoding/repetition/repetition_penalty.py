"""Repetition penalty, as everybody has it, but for generated text unless told otherwise.

transformers' own counts the prompt, and `generate` cannot be told otherwise. With `scope="all"`
this computes exactly what that one computes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from linearize.errors import UsageError, suggest

from .rows import Change, RowProcessor

Scope = Literal["output", "prompt", "all"]


def check_scope(scope: str) -> None:
    """Raises `UsageError` for what is no `Scope`."""
    if scope not in get_args(Scope):
        raise UsageError(f"there is no scope '{scope}'{suggest(scope, get_args(Scope))}")


@dataclass
class _Seen:
    """Tokens in scope, oldest first, and how often each occurs."""

    order: deque[int] = field(default_factory=deque)
    counts: dict[int, int] = field(default_factory=dict)


class RepetitionPenalty(RowProcessor[_Seen]):
    """Divide the positive logits of tokens that have occurred by `penalty`, multiply negative ones.

    The rule of CTRL (Keskar et al. 2019, arXiv 1909.05858, section 4.1) in the form that is safe
    for negative logits.

    - `penalty`: above 0; 1 switches it off, below 1 encourages repetition.
    - `scope`: what counts: "output" (generated text), "prompt" or "all".
    - `window`: only the last so many tokens of the scope; 0: all.

    Further arguments are those of `RowProcessor`. Raises `UsageError` for a value out of range.
    """

    name = "repetition-penalty"

    def __init__(
        self,
        tokenizer: Any,
        *,
        penalty: float = 1.2,
        scope: Scope = "output",
        window: int = 0,
        **row: Any,
    ) -> None:
        if not 0 < penalty < math.inf:
            raise UsageError(f"penalty={penalty:g} is not a number above 0; 1 switches it off")
        if window < 0:
            raise UsageError(f"window={window} is negative; 0 counts everything")
        check_scope(scope)
        super().__init__(tokenizer, **row)
        self.penalty, self.scope, self.window = penalty, scope, window

    def start(self, prompt: list[int]) -> _Seen:
        state = _Seen()
        if self.scope != "output":
            for token in prompt:
                self._count(state, token)
        return state

    def extend(self, state: _Seen, token: int) -> None:
        if self.scope != "prompt":
            self._count(state, token)

    def _count(self, state: _Seen, token: int) -> None:
        state.counts[token] = state.counts.get(token, 0) + 1
        if not self.window:
            return
        state.order.append(token)
        if len(state.order) > self.window:
            oldest = state.order.popleft()
            state.counts[oldest] -= 1
            if not state.counts[oldest]:
                del state.counts[oldest]

    def fork(self, state: _Seen) -> _Seen:
        return _Seen(state.order.copy(), state.counts.copy())

    def changes(self, state: _Seen, scores: Tensor) -> Iterable[Change]:
        if self.penalty == 1 or not state.counts:
            return
        seen = np.fromiter(state.counts, dtype=np.int64, count=len(state.counts))
        ids = torch.from_numpy(seen[seen < len(scores)]).to(scores.device)
        before = scores[ids]
        after = torch.where(before < 0, before * self.penalty, before / self.penalty)
        yield Change(ids, after, "has occurred before")
