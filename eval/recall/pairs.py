"""Associative recall as text: `Pairs: ab 12 cd 34 ef 56`, then a key whose number is asked for.

Multi-query associative recall (MQAR, Arora et al. 2023) in words, for models with a tokenizer;
`mqar` has the one in token ids.
"""

from __future__ import annotations

import itertools
import string

import numpy as np

from linearize.errors import UsageError

from .extraction import Document
from .seeds import at_least, generator

# Two letters each, a consonant and a vowel or the other way round: 210 words.
_VOWELS = "aeiou"
_CONSONANTS = [c for c in string.ascii_lowercase if c not in _VOWELS]
WORDS = [a + b for a, b in itertools.product(_CONSONANTS, _VOWELS)]
WORDS += [b + a for a, b in itertools.product(_CONSONANTS, _VOWELS)]


def pairs(items: int, *, seed: int = 0, count: int = 16) -> list[dict[str, str]]:
    """Questions about `count` pairs of a two-letter word and a two-digit number.

    Words are distinct within an item, numbers need not be. Returns dicts with `key`, `value`,
    `text`. Raises `UsageError` for more pairs than there are words (210).
    """
    at_least(0, items=items)
    return [_item(generator(seed, i), count) for i in range(items)]


def document(
    rng: np.random.Generator,
    *,
    count: int,
    words: int = len(WORDS),
    readings: int = 1,
    numbers: int = 1,
) -> Document:
    """One list of pairs.

    Args:
        count: pairs, as in `pairs`.
        words: how many of the words keys are drawn from; the fewer, the easier to learn.
        readings: how often the list is told, each time in another order.
        numbers: with two digits each, that belong to a word.
    """
    at_least(1, count=count, readings=readings, numbers=numbers)
    if count > words or words > len(WORDS):
        raise UsageError(
            f"count={count}: there are {min(words, len(WORDS))} words to make pairs of"
        )
    keys = [WORDS[i] for i in rng.permutation(words)[:count]]
    values = rng.integers(10, 100, (count, numbers))
    facts = {key: " ".join(map(str, value)) for key, value in zip(keys, values, strict=True)}
    told = list(facts.items())
    for _ in range(readings - 1):
        told += [list(facts.items())[i] for i in rng.permutation(count)]
    return Document("Pairs: " + " ".join(f"{k} {v}" for k, v in told) + ".", facts)


def _item(rng: np.random.Generator, count: int) -> dict[str, str]:
    made = document(rng, count=count)
    key = str(rng.choice(list(made.facts)))
    return {"key": key, "value": made.facts[key], "text": made.text}
