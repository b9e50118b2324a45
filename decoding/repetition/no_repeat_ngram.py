"""No n-gram twice, as everybody has it, but in generated text unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from linearize.errors import UsageError

from . import vocabulary
from .detect import SuffixMatches
from .repetition_penalty import Scope, check_scope
from .rows import Change, RowProcessor


@dataclass
class _Grams:
    history: SuffixMatches
    prompt: int  # how much of the history is prompt


class NoRepeatNGram(RowProcessor[_Grams]):
    """Forbid every token that would complete an n-gram for the second time.

    - `size`: n; 0 switches it off.
    - `scope`: where the first occurrence may lie: "output" (generated text; n-grams begin there as
      well), "prompt" or "all".
    - `exempt`: strings that may repeat: an n-gram whose text contains one of them, or is part of
      one, is not forbidden.

    If nothing would be left, nothing is forbidden. Further arguments are those of `RowProcessor`.
    Raises `UsageError` for a value out of range.
    """

    name = "no-repeat-ngram"

    def __init__(
        self,
        tokenizer: Any,
        *,
        size: int = 4,
        scope: Scope = "output",
        exempt: Sequence[str] = (),
        **row: Any,
    ) -> None:
        if size < 0:
            raise UsageError(f"size={size} is negative; 0 switches it off")
        check_scope(scope)
        exempt = [exempt] if isinstance(exempt, str) else list(exempt)
        if "" in exempt:
            raise UsageError("an exempt string is empty, every n-gram has it; leave it out")
        super().__init__(tokenizer, **row)
        self.size, self.scope = size, scope
        self._exempt = [text.encode() for text in exempt]
        self._vocabulary = vocabulary.of(tokenizer)

    def start(self, prompt: list[int]) -> _Grams:
        counted = prompt if self.scope != "output" else []
        state = _Grams(SuffixMatches(), len(counted))
        for token in counted:
            self.extend(state, token)
        return state

    def extend(self, state: _Grams, token: int) -> None:
        state.history.append(token)

    def fork(self, state: _Grams) -> _Grams:
        return _Grams(state.history.copy(), state.prompt)

    def changes(self, state: _Grams, scores: Tensor) -> Iterable[Change]:
        history = state.history
        if not self.size or len(history) < self.size:
            return
        last = len(history) if self.scope != "prompt" else state.prompt
        if self.size == 1:
            ends = np.arange(last)
        else:
            ends = np.flatnonzero(history.lengths[: max(last - 1, 0)] >= self.size - 1) + 1
        ids = history.ids
        if self._exempt:
            ends = [end for end in ends if not self._may_repeat(ids, end)]
        banned = np.unique(ids[ends])
        banned = banned[banned < len(scores)]
        if not len(banned):
            return
        tokens = torch.from_numpy(banned).to(scores.device)
        left = scores > -torch.inf
        left[tokens] = False
        if left.any():
            forbidden = torch.full_like(scores[tokens], -torch.inf)
            yield Change(tokens, forbidden, f"would repeat {self.size} tokens")

    def _may_repeat(self, ids: np.ndarray, end: int) -> bool:
        text = self._vocabulary.text(ids[end + 1 - self.size : end + 1].tolist())
        bare = text.strip()
        return any(e in text or (bare and bare in e) for e in self._exempt)
