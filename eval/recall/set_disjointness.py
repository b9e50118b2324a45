"""Set disjointness in token ids: which token is in both sets?

`[1, A, 2, B, 3]` -> the shared token. The task to which recall reduces: who reads once must keep
all of A, who reads the smaller set first, or twice, need not (Arora et al. 2024, arXiv 2407.05483,
section 3).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from linearize.errors import UsageError

from .mqar import IGNORED, Examples
from .pairs import WORDS
from .seeds import at_least, generator

OPEN, BETWEEN, ASK = 1, 2, 3
_SPECIAL = 4  # ids below are not elements
_UNEQUAL = ((4, 16), (8, 32), (4, 128), (16, 256), (4, 256))
# Sizes of A and B in the paper: trained on with 20 000 examples each, tested on with 1 000.
TRAIN = ((64, 16), *_UNEQUAL, (16, 64), *((b, a) for a, b in _UNEQUAL))
_TEST = ((1, 32), *((a, 768) for a in (4, 8, 16)))
TEST = (*TRAIN, *_TEST, *((b, a) for a, b in _TEST))


def set_disjointness(
    items: int,
    *,
    seed: int = 0,
    first: int = 4,
    second: int = 16,
    vocab_size: int = 2048,
    num_passes: int = 1,
) -> Examples:
    """Two sets that share one token; the label, that token, is on the last input.

    Args:
        items: examples.
        first, second: elements of A and B, drawn from two random halves of the vocabulary; then
            one of B becomes one of A.
        num_passes: how often `1, A, 2, B` is read before the closing 3.

    Raises `UsageError` where a set does not fit into half of the vocabulary.
    """
    at_least(0, items=items)
    at_least(1, first=first, second=second, num_passes=num_passes)
    half = (vocab_size - _SPECIAL) // 2
    if half < max(first, second):
        raise UsageError(
            f"vocab_size={vocab_size} leaves {half} tokens per set, for {max(first, second)}; "
            f"{2 * max(first, second) + _SPECIAL} or more are needed"
        )
    rows = []
    for i in range(items):
        rng = generator(seed, i)
        tokens = _SPECIAL + rng.permutation(vocab_size - _SPECIAL)
        a, b = tokens[:first], tokens[half : half + second]
        b[rng.integers(second)] = shared = a[rng.integers(first)]
        rows.append([*[OPEN, *a, BETWEEN, *b] * num_passes, ASK, shared])
    made = np.array(rows, np.int64).reshape(items, (first + second + 2) * num_passes + 2)
    labels = np.full_like(made[:, 1:], IGNORED)
    if items:
        labels[:, -1] = made[:, -1]
    return Examples(made[:, :-1], labels)


def in_words(
    items: int, *, seed: int = 0, first: int = 8, second: int = 32
) -> list[dict[str, Any]]:
    """The same as text: two lists of two-letter words, and which word is in both.

    Returns dicts with `context`, `question` and `answers`; `items`, `first` and `second` as in
    `set_disjointness`.
    """
    made = set_disjointness(
        items, seed=seed, first=first, second=second, vocab_size=len(WORDS) + _SPECIAL
    )
    return [
        {
            "context": f"A: {_listed(row[1 : 1 + first])}\nB: {_listed(row[2 + first : -1])}\n",
            "question": "In both A and B:",
            "answers": [WORDS[label[-1] - _SPECIAL]],
        }
        for row, label in zip(made.inputs, made.labels, strict=True)
    ]


def _listed(tokens: NDArray[np.int64]) -> str:
    return " ".join(WORDS[token - _SPECIAL] for token in tokens)
