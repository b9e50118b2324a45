"""DRY ("don't repeat yourself"): the longer a copy has grown, the less its next token is wanted.

As defined by p-e-w (oobabooga/text-generation-webui, pull request 5677) and used in llama.cpp:
a token that would lengthen a verbatim repeat of k tokens loses
`multiplier * base ** (k - allowed_length)` from its logit. Differences, all for robustness:

- Breakers are strings, looked for in the text itself, so no token that merely contains one, and no
  breaker spread over several tokens, escapes; special tokens (chat marks) always break.
- A penalty never exceeds 10,000, beyond which it makes no difference, so nothing overflows.
- Only generated text counts, unless told otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linearize.errors import UsageError

from . import vocabulary
from .detect import SuffixMatches
from .rows import Change, RowProcessor, special_ids

BREAKERS = ("\n", ":", '"', "*")
LARGEST = 1e4


@dataclass
class _Row:
    history: SuffixMatches
    tail: bytes  # text in which a breaker may have begun


class DRY(RowProcessor[_Row]):
    """Lower the logits of tokens that would go on with a verbatim repeat.

    - `multiplier`: 0 switches it off. `base`: at least 1. `allowed_length`: shortest repeat that
      is penalised, at least 1.
    - `range`: only the last so many tokens count; 0 and -1: all.
    - `breakers`: strings no repeat reaches over; a token with one is never penalised.
    - `count_prompt`: the prompt counts as well.

    Further arguments are those of `RowProcessor`. Raises `UsageError` for a value out of range.
    """

    name = "dry"

    def __init__(
        self,
        tokenizer: Any,
        *,
        multiplier: float = 0.8,
        base: float = 1.75,
        allowed_length: int = 2,
        range: int = 0,
        breakers: Sequence[str] = BREAKERS,
        count_prompt: bool = False,
        **row: Any,
    ) -> None:
        if not 0 <= multiplier < math.inf:
            raise UsageError(f"multiplier={multiplier:g} is not a number from 0 up; 0 is off")
        if not 1 <= base < math.inf:
            raise UsageError(f"base={base:g} is below 1, longer repeats would count less")
        if allowed_length < 1:
            raise UsageError(f"allowed_length={allowed_length} is below 1")
        if range < -1:
            raise UsageError(f"range={range} is below -1; 0 and -1 count everything")
        breakers = [breakers] if isinstance(breakers, str) else list(breakers)
        if "" in breakers:
            raise UsageError("a breaker is empty, it would break everywhere; leave it out")
        super().__init__(tokenizer, **row)
        self.multiplier, self.base, self.allowed_length = multiplier, base, allowed_length
        self.range, self.count_prompt = max(range, 0), count_prompt
        self._breakers = [b.encode() for b in breakers]
        self._tail = max(map(len, self._breakers), default=1) - 1
        self._vocabulary = vocabulary.of(tokenizer)
        self._special = special_ids(tokenizer)
        # The length from which every repeat gets the largest penalty.
        steps = math.log(LARGEST / multiplier) / math.log(base) if multiplier and base > 1 else 0
        self._longest = allowed_length + max(math.ceil(steps), 0)

    def start(self, prompt: list[int]) -> _Row:
        state = _Row(SuffixMatches(), b"")
        for token in prompt if self.count_prompt else ():
            self.extend(state, token)
        return state

    def extend(self, state: _Row, token: int) -> None:
        special = token in self._special
        piece = b"" if special else self._vocabulary.text([token])
        text = state.tail + piece
        # A breaker that ended before this piece is not found again.
        old = len(state.tail)
        wall = special or any(b in text[max(old - len(b) + 1, 0) :] for b in self._breakers)
        state.history.append(token, wall=wall)
        state.tail = b"" if special or not self._tail else text[-self._tail :]

    def fork(self, state: _Row) -> _Row:
        return _Row(state.history.copy(), state.tail)

    def changes(self, state: _Row, scores: Tensor) -> Iterable[Change]:
        history = state.history
        if not self.multiplier or len(history) < 2:
            return
        first = max(len(history) - self.range, 0) if self.range else 0
        lengths = history.lengths[first:]
        if self.range:
            lengths = np.minimum(lengths, np.arange(1, len(lengths) + 1))
        after = slice(first + 1, None)
        wanted = (lengths >= self.allowed_length) & ~history.walls[after]
        wanted &= history.ids[after] < len(scores)
        if not wanted.any():
            return
        longest = np.minimum(lengths[wanted], self._longest)
        tokens, place = np.unique(history.ids[after][wanted], return_inverse=True)
        best = np.zeros(len(tokens), dtype=np.int64)
        np.maximum.at(best, place, longest)
        penalty = self.multiplier * self.base ** (best - self.allowed_length).astype(np.float64)
        penalty = torch.from_numpy(penalty.clip(max=LARGEST)).float().to(scores.device)
        ids = torch.from_numpy(tokens).to(scores.device)
        # An impossible token stays impossible, a possible one stays finite.
        before = scores[ids]
        after_it = (before - penalty).clamp(min=torch.finfo(scores.dtype).min)
        after_it = torch.where(before.isfinite(), after_it.to(scores.dtype), before)
        reason = f"would go on with a repeat of {int(lengths.max())} tokens"
        yield Change(ids, after_it, reason)
