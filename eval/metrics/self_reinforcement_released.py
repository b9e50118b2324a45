"""Self-reinforcement as DITTO's public analysis script tabulates it.

It differs from the paper's definitions (`self_reinforcement`) in three ways: its windows are
shifted by one token, so that copy n stands for tokens 2..L of a copy and the first token of the
next one; means are over the tokens of all documents; a token wins by being the argmax, likelier
than at first or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from .ngrams import mean

PARTS = ("all", "middle", "first", "end")


@dataclass(frozen=True)
class NextTokens:
    """A prefix of P tokens and copies of a sentence of L tokens, as a model predicted them.

    - `prefix_len`, `sentence_len`: P and L; L is at least 2.
    - `targets`, `probs`, `predicted`: `[P + copies * L]`; entry i is about token i + 1: its id, its
      probability, and the most likely id. The last entry is about no token and is never read.
    """

    prefix_len: int
    sentence_len: int
    targets: Sequence[int]
    probs: Sequence[float]
    predicted: Sequence[int]

    @property
    def copies(self) -> int:
        return (len(self.targets) - self.prefix_len) // self.sentence_len

    def at(self, copy: int, part: str) -> range:
        """Entries of a copy that belong to a part of the sentence."""
        start = self.prefix_len + copy * self.sentence_len
        stop = start + self.sentence_len
        return {
            "all": range(start, stop),
            "middle": range(start, stop - 2),
            "end": range(stop - 2, stop - 1),
            "first": range(stop - 1, stop),
        }[part]


class Row(NamedTuple):
    """Means over tokens, all in [0, 1]: probability in the first copy and in this one, share that
    became likelier than in the first copy, share that is the argmax."""

    first_prob: float
    repeat_prob: float
    improve_rate: float
    win_rate: float


def released_table(documents: Sequence[NextTokens], part: str = "all") -> list[Row]:
    """Row n - 1 compares copy n with copy 0; n = 1..copies - 2 of the shortest document.

    - `part`: one of `PARTS`: the whole sentence, or what is neither its first token nor its end
      mark, or one of those two.
    """
    copies = min((document.copies for document in documents), default=0)
    return [_row(documents, n, part) for n in range(1, copies - 1)]


def _row(documents: Sequence[NextTokens], copy: int, part: str) -> Row:
    pairs = [
        (document, i, j)
        for document in documents
        for i, j in zip(document.at(0, part), document.at(copy, part), strict=True)
    ]
    return Row(
        mean(d.probs[i] for d, i, _ in pairs),
        mean(d.probs[j] for d, _, j in pairs),
        mean(d.probs[j] > d.probs[i] for d, i, j in pairs),
        mean(d.predicted[j] == d.targets[j] for d, _, j in pairs),
    )
