"""State that follows a row while it grows: the base of every remedy against repetition.

- transformers hands a logits processor whole id tensors and never says which row became which:
  beam search reorders them, speculative loops take tokens back, finished rows go on with padding.
  So a row's state is found again by the row's ids, and copied where one row became several.
- A step costs one comparison of the id tensors and one `extend` per row, not a pass over the
  history.
- Penalties are values for a few tokens; the logits of all others stay bit for bit what they were.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor
from transformers import LogitsProcessor

State = TypeVar("State")


@dataclass(frozen=True)
class Change:
    """New logits for some tokens of one row.

    - `tokens`: distinct ids, int64 `[n]`; `logits`: what they become, `[n]`.
    - `reason`: why, in a few words for people ("3 copies of `if NAME: ...`").
    """

    tokens: Tensor
    logits: Tensor
    reason: str


@dataclass(frozen=True)
class Penalty:
    """A change that was made, as `on_penalty` hears of it.

    - `row`: index in the batch; `position`: the new token's place in the row, padding counted.
    - `tokens`, `before`, `after`: ids and their logits, lists of equal length.
    - `would_have_been`: the most likely token before this remedy; `now`: after it.
    """

    remedy: str
    row: int
    position: int
    tokens: list[int]
    before: list[float]
    after: list[float]
    reason: str
    would_have_been: int
    now: int


class RowProcessor(LogitsProcessor, Generic[State]):
    """A `LogitsProcessor` with one state per row.

    A subclass says how a state starts from a prompt, grows by a token, is copied, and which logits
    it changes. An instance serves any number of `generate` calls, one after the other.

    Args:
        pad_token_id: left padding; leading ids equal to it are not part of the prompt. None takes
            the tokenizer's, if it has one.
        prompt_length: length of the prompts, padding included. None takes the first ids of a call
            for the prompt, which is right inside `model.generate`. With it, a row that is several
            tokens longer or shorter than before is understood as well.
        on_penalty: called with every change as it is made; costs a few transfers per change.
    """

    name = "remedy"

    def __init__(
        self,
        tokenizer: Any = None,
        *,
        pad_token_id: int | None = None,
        prompt_length: int | None = None,
        on_penalty: Callable[[Penalty], None] | None = None,
    ) -> None:
        own = getattr(tokenizer, "pad_token_id", None)
        self.pad_token_id = own if pad_token_id is None else pad_token_id
        self.prompt_length = prompt_length
        self.on_penalty = on_penalty
        self.reset()

    @abstractmethod
    def start(self, prompt: list[int]) -> State:
        """The state after a prompt (ids without padding)."""

    @abstractmethod
    def extend(self, state: State, token: int) -> None:
        """Append a generated token to `state`, in place."""

    @abstractmethod
    def fork(self, state: State) -> State:
        """An independent copy."""

    @abstractmethod
    def changes(self, state: State, scores: Tensor) -> Iterable[Change]:
        """What to change in `scores` `[V]`, the logits of the next token. No token twice."""

    def reset(self) -> None:
        """Forget all rows: the next call starts a new prompt."""
        self._ids: Tensor | None = None
        self._prompt = 0
        self._states: list[State] = []

    def for_row(self, row: int) -> Self:
        """One for a batch that holds this row alone, with the same settings and no rows yet."""
        single = copy(self)
        single.reset()
        if (told := self.on_penalty) is not None:
            single.on_penalty = lambda penalty: told(replace(penalty, row=row))
        return single

    def ahead(self) -> Self:
        """A copy that may run ahead and tells nobody, while this one stays where it is."""
        branch = copy(self)
        branch._states = [self.fork(state) for state in self._states]
        branch.on_penalty = None
        return branch

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """`input_ids` int64 `[B, T]`, `scores` `[B, V]`; returns `scores` or a changed copy."""
        self._follow(input_ids)
        result = scores
        for row, state in enumerate(self._states):
            for change in self.changes(state, scores[row]):
                if result is scores:
                    result = scores.clone()
                tokens = change.tokens.to(scores.device)
                result[row, tokens] = change.logits.to(scores)
                if self.on_penalty is not None:
                    self._report(row, input_ids.shape[1], change, scores[row], result[row])
        return result

    def _follow(self, ids: Tensor) -> None:
        """Bring the states up to `ids`."""
        old = self._ids
        self._ids = ids  # transformers appends by making a new tensor, so this one stays as it is
        step = old is not None and ids.shape[1] == old.shape[1] + 1
        if step and len(ids) == len(old) and torch.equal(ids[:, :-1], old):
            for state, token in zip(self._states, ids[:, -1].tolist(), strict=True):
                self.extend(state, token)
        elif self._grown(ids, old):
            for state, tokens in zip(self._states, ids[:, old.shape[1] :].tolist(), strict=True):
                for token in tokens:
                    self.extend(state, token)
        elif not (step and self._reordered(ids, old)):
            self._restart(ids, old)

    def _grown(self, ids: Tensor, old: Tensor | None) -> bool:
        """Whether every row is its old self and more, with new tokens known to be no prompt."""
        if old is None or self.prompt_length is None or self._prompt != self.prompt_length:
            return False
        return len(ids) == len(old) and torch.equal(ids[:, : old.shape[1]], old)

    def _reordered(self, ids: Tensor, old: Tensor) -> bool:
        """States of rows that each extend some old row by one token; False if one does not."""
        homes = {row.tobytes(): index for index, row in enumerate(old.cpu().numpy())}
        sources = [homes.get(row.tobytes()) for row in ids[:, :-1].cpu().numpy()]
        if None in sources:
            return False
        left = Counter(sources)
        states = []
        for source, token in zip(sources, ids[:, -1].tolist(), strict=True):
            left[source] -= 1
            # The last row to come from a state keeps it; the others take copies before it grows.
            state = self.fork(self._states[source]) if left[source] else self._states[source]
            states.append((state, token))
        for state, token in states:
            self.extend(state, token)
        self._states = [state for state, _ in states]
        return True

    def _restart(self, ids: Tensor, old: Tensor | None) -> None:
        """Start anew; rows that only lost tokens keep what was their prompt."""
        prompt = self.prompt_length
        if prompt is None:
            shorter = old is not None and self._prompt < ids.shape[1] <= old.shape[1]
            same = shorter and len(ids) == len(old)
            same = same and torch.equal(ids[:, : self._prompt], old[:, : self._prompt])
            prompt = self._prompt if same else ids.shape[1]
        self._prompt = prompt
        self._states = []
        for row in ids.tolist():
            state = self.start(self._unpadded(row[:prompt]))
            for token in row[prompt:]:
                self.extend(state, token)
            self._states.append(state)

    def _unpadded(self, row: Sequence[int]) -> list[int]:
        first = next((i for i, token in enumerate(row) if token != self.pad_token_id), len(row))
        return list(row[first:])

    def _report(
        self, row: int, position: int, change: Change, before: Tensor, after: Tensor
    ) -> None:
        tokens = change.tokens.to(before.device)
        self.on_penalty(
            Penalty(
                remedy=self.name,
                row=row,
                position=position,
                tokens=tokens.tolist(),
                before=before[tokens].tolist(),
                after=after[tokens].tolist(),
                reason=change.reason,
                would_have_been=int(before.argmax()),
                now=int(after.argmax()),
            )
        )


def special_ids(tokenizer: Any) -> set[int]:
    """Ids that stand for no text (beginning, end, padding, chat marks)."""
    added = tokenizer.added_tokens_decoder.items()
    return {int(i) for i in tokenizer.all_special_ids} | {int(i) for i, t in added if t.special}
