"""Repetition of whole sentences and whole lines.

Every value is a share in [0, 1]: `1 - distinct / total`, mean over texts. Copies need not follow
each other. Two forms each: the default counts every unit of the text once, `released=True` is what
the public scripts print, which ignore the text before the first mark and clip the last unit.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Sequence
from itertools import groupby

from .ngrams import Tokens, mean, repeated_share

# Blanks after an end mark and what may close behind it; the end of a line; full-width end marks.
_END = re.compile(r"""(?<=[.!?…])\s+|(?<=[.!?…]["'”’)\]])\s+|[\r\n]+|(?<=[。！？])""")


def rep_s(texts: Iterable[str], *, released: bool = False) -> float:
    """Share of repeated lines (RPG's released scripts; a text is code there, a sentence its line).

    Lines that differ only in blanks at their ends are equal, blank lines do not count, and a text
    without any other is left out. With `released` every text counts: its first line is ignored, its
    last one loses a character, empty lines are equal to each other.
    """
    if released:
        return mean(_released_share(text, "\n") for text in texts)
    found = ([line.strip() for line in text.split("\n") if line.strip()] for text in texts)
    return mean(repeated_share(lines) for lines in found if lines)


def rep_sen(sequences: Iterable[Tokens], *, mark: Hashable = ".", released: bool = False) -> float:
    """Share of repeated sentences in token sequences, where `mark` ends a sentence.

    rep-sen of DITTO, there over word-level tokens with ".". A last sentence without its mark counts
    as a sentence, empty ones do not, and a text without any is left out. With `released` every text
    counts: tokens up to the first mark are ignored, the span after the last mark loses its last
    token, empty spans are equal to each other, and a text without a mark is 0.
    """
    if released:
        return mean(_released_share(tuple(tokens), mark) for tokens in sequences)
    found = (_spans(tokens, mark) for tokens in sequences)
    return mean(repeated_share(spans) for spans in found if spans)


def sentences(text: str) -> list[str]:
    """Sentences of a text: cut after `.`, `!`, `?`, `…` before a blank, and at line ends.

    Blanks inside are made single, empty ones are left out. Abbreviations end a sentence too: good
    enough to count copies of the same words.
    """
    pieces = (" ".join(piece.split()) for piece in _END.split(text))
    return [piece for piece in pieces if piece]


def sentence_repetition(texts: Iterable[str]) -> float:
    """Share of repeated sentences in texts: `rep_sen` where no tokens are at hand.

    Sentences as `sentences` finds them; a text without any is left out.
    """
    found = map(sentences, texts)
    return mean(repeated_share(units) for units in found if units)


def _spans(tokens: Tokens, mark: Hashable) -> list[tuple[Hashable, ...]]:
    groups = groupby(tokens, key=lambda token: token == mark)
    return [tuple(span) for is_mark, span in groups if not is_mark]


def _released_share(text: Sequence[Hashable], mark: Hashable) -> float:
    marks = [i for i, item in enumerate(text) if item == mark]
    ends = [*marks[1:], len(text) - 1]
    return repeated_share([text[i + 1 : end] for i, end in zip(marks, ends, strict=False)])
