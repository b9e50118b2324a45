"""Repetition among the tokens of a text: n-grams, recent tokens, bigrams, vocabulary.

- A sequence is a list of anything hashable: token ids, words, lexemes, grammar elements.
- Every value is a share in [0, 1]; the RPG scripts print the same numbers times 100.
- A text too short to hold what is counted says nothing and is left out; with no text left the
  value is 0 (`diversity`: 1).

RPG is "Rethinking Repetition Problems of LLMs in Code Generation" (ACL 2025), DITTO is "Learning to
Break the Loop" (NeurIPS 2022).
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from itertools import pairwise

from linearize.errors import UsageError

Tokens = Sequence[Hashable]


def repeated(items: Sequence[Hashable]) -> int:
    """Occurrences of something that occurred before: total minus distinct."""
    return len(items) - len(set(items))


def repeated_share(items: Sequence[Hashable]) -> float:
    """`1 - distinct / total` in [0, 1); 0 of nothing."""
    return repeated(items) / len(items) if items else 0.0


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean, 0 of nothing; the sum is exact, so the order does not matter."""
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def ngrams(tokens: Tokens, n: int) -> list[tuple[Hashable, ...]]:
    """The n-grams of a sequence in order, overlapping. Raises `UsageError` for n < 1."""
    if n < 1:
        raise UsageError(f"n={n} is below 1; an n-gram has at least one token")
    return list(zip(*(tokens[i:] for i in range(n)), strict=False))


def rep_n(sequences: Iterable[Tokens], n: int) -> float:
    """Share of n-gram occurrences that repeat an earlier one of their own text (micro average).

    `sum over texts of (total - distinct) / sum over texts of total`, as in RPG's released scripts
    (there over lexemes, see `code.lexemes`, n = 2, 3, 4) and in `diversity`.
    """
    grams = [ngrams(tokens, n) for tokens in sequences]
    total = sum(map(len, grams))
    return sum(map(repeated, grams)) / total if total else 0.0


def rep_n_by_position(sequences: Iterable[Tokens], n: int, edges: Sequence[int]) -> list[float]:
    """`rep_n` of the n-grams that end at positions `[edges[i], edges[i + 1])` of their own text.

    Where in a text repetition sets in: an n-gram repeats if it occurred anywhere before in its
    text. Positions count from 0; nan for a stretch in which no text has an n-gram.
    """
    seen = [0] * (len(edges) - 1)
    total = [0] * (len(edges) - 1)
    for tokens in sequences:
        known: set[Hashable] = set()
        for end, gram in enumerate(ngrams(tokens, n), start=n - 1):
            place = bisect_right(edges, end) - 1
            if 0 <= place < len(total):
                total[place] += 1
                seen[place] += gram in known
            known.add(gram)
    return [s / t if t else math.nan for s, t in zip(seen, total, strict=True)]


def seq_rep_n(sequences: Iterable[Tokens], n: int, *, pad: Hashable | None = None) -> float:
    """Mean over texts of `1 - distinct / total` n-grams (macro average).

    seq-rep-n of unlikelihood training (Welleck et al. 2020, section 5.3) and of DITTO, n = 1..4,
    where it is computed over 100-token continuations and printed rounded to 4 digits.

    - `pad`: a sequence ends before the first of these.
    """
    grams = (ngrams(_until(tokens, pad), n) for tokens in sequences)
    return mean(repeated_share(g) for g in grams if g)


def rep_w(sequences: Iterable[Tokens], *, window: int = 16) -> float:
    """Share of tokens that occur among the `window` tokens before them, mean over texts.

    Counted from the second token on. RPG's released scripts (after Fu et al. 2021, "A theoretical
    analysis of the repetition problem in text generation"). Raises `UsageError` for window < 1.
    """
    if window < 1:
        raise UsageError(f"window={window} is below 1; it counts the tokens looked back at")
    return mean(_share_seen(tokens, window) for tokens in sequences if len(tokens) > 1)


def rep_r(sequences: Iterable[Tokens], *, released: bool = False) -> float:
    """Share of tokens that belong to a bigram occurring twice or more in its text, mean over texts.

    RPG's released scripts (after Fu et al. 2021). With `released` texts of fewer than two tokens
    count as they do there: 0 once if empty, twice if of one token.
    """
    shares = []
    for tokens in sequences:
        if len(tokens) > 1:
            shares.append(_share_in_repeated_bigrams(tokens))
        elif released:
            shares += [0.0] * (1 + len(tokens))
    return mean(shares)


def diversity(sequences: Sequence[Tokens]) -> float:
    """`product over n = 2..4 of (1 - rep_n)` in [0, 1]; 1 is a text without repeated bigrams.

    SimCTG (Su et al. 2022, "A contrastive framework for neural text generation", section 5.1), over
    words. Its script leaves the last n-gram of each text out; here every n-gram counts.
    """
    return math.prod(1 - rep_n(sequences, n) for n in (2, 3, 4))


def uniq(sequences: Iterable[Tokens]) -> int:
    """Number of distinct tokens over all texts (DITTO and Welleck et al. 2020; a count)."""
    return len(set().union(*sequences))


def _until(tokens: Tokens, pad: Hashable | None) -> Tokens:
    return tokens[: tokens.index(pad)] if pad is not None and pad in tokens else tokens


def _share_seen(tokens: Tokens, window: int) -> float:
    last: dict[Hashable, int] = {}
    seen = 0
    for i, token in enumerate(tokens):
        seen += i - last.get(token, -1 - window) <= window
        last[token] = i
    return seen / (len(tokens) - 1)


def _share_in_repeated_bigrams(tokens: Tokens) -> float:
    counts = Counter(pairwise(tokens))
    twice = [counts[bigram] > 1 for bigram in pairwise(tokens)]
    covered = [a or b for a, b in zip([*twice, False], [False, *twice], strict=True)]
    return sum(covered) / len(tokens)
