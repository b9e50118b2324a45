"""ditto-cap, our own: DITTO's finding applied while decoding. Not part of the DITTO paper.

DITTO (Xu et al. 2022, arXiv 2206.02369) found that a sentence, once repeated, becomes more probable
with every copy, and trains that away: a token of a copy may have at most lambda times the
probability it had in the copy before (equation 4). Here the same limit is kept at decode time, for
any model: probabilities are recorded while a sentence is being repeated, and a token that would go
on with the next copy is lowered to `lambda * r`, r being what was recorded one copy earlier. The
odds among all other tokens stay what they were, and the limit falls as lambda^n.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from linearize.errors import UsageError, suggest

from . import vocabulary
from .rows import Change, RowProcessor, special_ids

Unit = Literal["sentence", "line"]
# Besides the end of the line.
MARKS: dict[str, tuple[bytes, ...]] = {
    "sentence": tuple(mark.encode() for mark in ".!?。！？"),
    "line": (),
}
_BLANKS = re.compile(rb"[ \t\r\n]+")
_WORD = re.compile(rb"[A-Za-z0-9\x80-\xff]")


@dataclass
class _Sentence:
    """From the first token with a word in it to the token with the end mark.

    `text` has every run of blanks as one; `starts[i]` is where token i begins in it; `probs[i]` the
    probability recorded for it, None where it is not known.
    """

    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)
    probs: list[float | None] = field(default_factory=list)
    text: bytes = b""

    def token_at(self, place: int) -> int | None:
        """Index of the token that begins at `place` of the text, if one does."""
        index = bisect_left(self.starts, place)
        return index if index < len(self.ids) and self.starts[index] == place else None

    def copy(self) -> _Sentence:
        return _Sentence([*self.ids], [*self.starts], [*self.probs], self.text)


@dataclass
class _Row:
    now: _Sentence = field(default_factory=_Sentence)
    last: _Sentence | None = None
    copies: int = 0  # how many complete sentences before `last` equal it, one after the other
    alive: bool = False  # `now` is so far a copy of `last`
    expected: tuple[int, float] | None = None  # next token of the copy and its probability


class DittoCap(RowProcessor[_Row]):
    """Keep the tokens of a repeated sentence from becoming more probable.

    - `strength`: lambda; 0.5 as in the paper, smaller is stronger, `inf` switches it off.
    - `min_copies`: a sentence is capped once its last so many complete copies stand directly after
      the first (1: it stands there twice).
    - `floor`: no cap below this probability.
    - `unit`: "sentence" (up to . ! ? or the line's end) or "line", for code. Sentences without a
      letter or digit, such as closing brackets and empty lines, are not sentences.
    - `count_prompt`: sentences of the prompt count as copies; their probabilities are not known, so
      the first cap is lambda times the present probability.

    Sentences are compared as text with blanks collapsed. Loops of several sentences, and loops
    without any end mark, are not its business. After a roll-back (assisted decoding) recorded
    probabilities are lost, and the first cap is again lambda times the present one.

    Further arguments are those of `RowProcessor`. Raises `UsageError` for a value out of range.
    """

    name = "ditto-cap"

    def __init__(
        self,
        tokenizer: Any,
        *,
        strength: float = 0.5,
        min_copies: int = 1,
        floor: float = 1e-4,
        unit: Unit = "sentence",
        count_prompt: bool = False,
        **row: Any,
    ) -> None:
        if not (0 < strength <= 1 or strength == math.inf):
            raise UsageError(f"strength={strength:g} is outside (0, 1]; inf switches it off")
        if min_copies < 1:
            raise UsageError(f"min_copies={min_copies} is below 1: no sentence is repeated yet")
        if not 0 < floor < 1:
            raise UsageError(f"floor={floor:g} is outside (0, 1)")
        if unit not in MARKS:
            raise UsageError(f"there is no unit '{unit}'{suggest(unit, get_args(Unit))}")
        super().__init__(tokenizer, **row)
        self.strength, self.min_copies, self.floor = strength, min_copies, floor
        self.count_prompt = count_prompt
        self._marks = MARKS[unit]
        self._vocabulary = vocabulary.of(tokenizer)
        self._special = special_ids(tokenizer)

    def start(self, prompt: list[int]) -> _Row:
        state = _Row()
        for token in prompt if self.count_prompt else ():
            self.extend(state, token)
        return state

    def extend(self, state: _Row, token: int) -> None:
        expected, state.expected = state.expected, None
        if token in self._special:  # a new turn of a chat, or the end
            state.now, state.last, state.copies, state.alive = _Sentence(), None, 0, False
            return
        piece = self._vocabulary.text([token])
        now = state.now
        if not now.ids:
            piece = piece.lstrip()
            if not _WORD.search(piece):
                return  # between sentences
        before = len(now.text)
        now.ids.append(token)
        now.starts.append(before)
        now.probs.append(expected[1] if expected and expected[0] == token else None)
        line_ends = b"\n" in piece
        piece = _BLANKS.sub(b" ", piece)
        now.text += piece.lstrip(b" ") if now.text.endswith(b" ") else piece
        if state.alive:
            state.alive = state.last.text.startswith(now.text[before:], before)
        # An end mark may have begun in an earlier token.
        if line_ends or any(m in now.text[max(before - len(m) + 1, 0) :] for m in self._marks):
            self._complete(state)

    def _complete(self, state: _Row) -> None:
        same = state.last is not None and state.last.text.rstrip() == state.now.text.rstrip()
        state.copies = state.copies + 1 if same else 0
        state.last, state.now, state.alive = state.now, _Sentence(), True

    def fork(self, state: _Row) -> _Row:
        return replace(state, now=state.now.copy())  # `last` is complete and never changes

    def changes(self, state: _Row, scores: Tensor) -> Iterable[Change]:
        if not state.alive or self.strength == math.inf:
            return
        at = state.last.token_at(len(state.now.text))
        if at is None or state.last.ids[at] >= len(scores):
            return
        token = state.last.ids[at]
        others = scores.to(torch.float32, copy=True)
        others[token] = -torch.inf
        logit, rest = torch.stack((scores[token].float(), others.logsumexp(-1))).tolist()
        odds = logit - rest
        if not math.isfinite(odds):
            return  # impossible, or the only one possible
        probability = 1 / (1 + math.exp(-odds)) if odds > -700 else 0.0
        cap = 1.0
        if state.copies >= self.min_copies:
            recorded = state.last.probs[at]
            cap = self.strength * (probability if recorded is None else recorded)
            cap = max(cap, self.floor)
        state.expected = token, min(probability, cap)
        if probability > cap:
            logit = rest + math.log(cap / (1 - cap))
            reason = f"copy {state.copies + 2} of a sentence: at most {cap:.2g}"
            yield Change(torch.tensor([token]), torch.tensor([logit]), reason)
