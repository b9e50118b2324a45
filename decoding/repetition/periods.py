"""How often the end of a token stream repeats itself, for every period at once.

For each period p the length of the match between the stream and itself p tokens earlier is kept;
a new token prolongs or resets it. One vector operation per token, whatever the length.
"""

from __future__ import annotations

import numpy as np


class Periods:
    """Verbatim repetition at the end of a growing token sequence, periods 1 to `longest`."""

    def __init__(self, longest: int) -> None:
        self._recent = np.full(longest, -1, dtype=np.int64)  # the last token first
        self._match = np.zeros(longest, dtype=np.int64)
        self._periods = np.arange(1, longest + 1)
        self.looped = 0.0  # tokens spent in fourth and later copies; forgotten four times slower

    def fork(self) -> Periods:
        """An independent copy."""
        copy = object.__new__(Periods)
        copy.__dict__.update(self.__dict__)
        copy._recent, copy._match = self._recent.copy(), self._match.copy()
        return copy

    def append(self, token: int) -> None:
        """The stream goes on."""
        self._match += 1
        self._match *= self._recent == token
        self._recent[1:] = self._recent[:-1]
        self._recent[0] = token
        looping = (self._match >= 3 * self._periods).any()
        self.looped = self.looped + 1 if looping else max(0.0, self.looped - 0.25)

    def run(self, *, min_copies: int, min_tokens: int) -> tuple[int, list[int]] | None:
        """Copies of the shortest period with at least `min_copies` that cover `min_tokens`, and
        the tokens of one copy in the order in which they would come next. None if there is none.
        """
        enough = self._match >= np.maximum(
            (min_copies - 1) * self._periods, min_tokens - self._periods
        )
        if not enough.any():
            return None
        at = int(enough.argmax())
        period = at + 1
        return int(self._match[at]) // period + 1, self._recent[at::-1].tolist()
