"""RPG as its public code does it, bit for bit, for comparison with the published figures.

For use on code, the paper's idea is `RPG`; this is what github.com/LYC127/RPG computes, written
from a description of its behaviour. Known to differ from the paper (arXiv 2505.10402), and kept:

- No grammar: a lexer for Python over Llama-style vocabulary pieces.
- The prompt counts, its beginning-of-text token included.
- The penalised token is the first of the last copy, not the one about to be chosen.
- A structural repeat counts as one copy however many there are, and is seen only where its length
  divides the number of lines so far.
- A logit is multiplied, so that a negative one rises.
- After some starts of statements the end of text is encouraged, which the paper does not mention.

The public code is broken for more than one row; here every row is on its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError

from .detect import SuffixMatches, repeated_end
from .released_lexer import NEWLINE, ReleasedLexer
from .rows import Change, RowProcessor

EOS_TRIGGERS = frozenset(
    {"assert", "if", "elif", "else", "print", "def", "try", "while", "import", "for", "from"}
    | {"class", "#", '"""', "'''", NEWLINE}
)


@dataclass
class _Row:
    history: SuffixMatches = field(default_factory=SuffixMatches)
    lexer: ReleasedLexer = field(default_factory=ReleasedLexer)


class RPGReleased(RowProcessor[_Row]):
    """Multiply the logit of a repeat's first token by `decay ** copies`.

    `decay`: the paper's lambda, in (0, 1]. `eos_divisor`: the end-of-text logit is divided by
    `eos_divisor ** copies` after certain starts, in (0, 1]. Both at 1 change nothing.

    Further arguments are those of `RowProcessor`. Raises `UsageError` for a value out of range.
    """

    name = "rpg-released"

    def __init__(
        self, tokenizer: Any, *, decay: float = 0.9, eos_divisor: float = 0.8, **row: Any
    ) -> None:
        for option, value in (("decay", decay), ("eos_divisor", eos_divisor)):
            if not 0 < value <= 1:
                raise UsageError(f"{option}={value:g} is outside (0, 1]; 1 switches it off")
        super().__init__(tokenizer, **row)
        self.tokenizer = tokenizer
        self.decay, self.eos_divisor = decay, eos_divisor
        pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self._pieces = [NEWLINE if piece == "<0x0A>" else piece or "" for piece in pieces]

    def start(self, prompt: list[int]) -> _Row:
        state = _Row()
        for token in prompt:
            self.extend(state, token)
        return state

    def extend(self, state: _Row, token: int) -> None:
        state.history.append(token)
        state.lexer.feed(self._pieces[token] if 0 <= token < len(self._pieces) else "")

    def fork(self, state: _Row) -> _Row:
        return _Row(state.history.copy(), state.lexer.copy())

    def events(self, state: _Row) -> dict[int, tuple[int, str]]:
        """Token -> (exponent, reason); the last entry is the one the end of text follows."""
        found = {}
        history = state.history
        period = history.period(len(history) // 2 - 1)
        if period:
            copies = history.extra_copies(period)
            reason = f"{copies + 1} copies of {period} tokens"
            found[int(history.ids[-period])] = copies, reason
        units = state.lexer.units()
        repeated = repeated_end(units)
        if repeated:
            first = state.lexer.starts[len(units) - repeated]
            found[int(history.ids[first])] = 1, f"a repeated block of {repeated} lexical lines"
        return found

    def changes(self, state: _Row, scores: Tensor) -> Iterable[Change]:
        if self.decay == self.eos_divisor == 1:
            return
        events = self.events(state)
        changed = {
            token: (scores[token] * self.decay**copies, reason)
            for token, (copies, reason) in events.items()
            if token < len(scores)
        }
        eos = self.tokenizer.eos_token_id
        if changed and eos is not None and eos < len(scores):
            last = next(reversed(events))
            start = self.tokenizer.decode([last])
            if start in EOS_TRIGGERS:
                logit = changed[eos][0] if eos in changed else scores[eos]
                reason = f"end of text, after repeated {start!r}"
                changed[eos] = logit / self.eos_divisor ** events[last][0], reason
        for token, (logit, reason) in changed.items():
            yield Change(torch.tensor([token]), logit[None], reason)
