"""Copying: a random string to be repeated, or to be gone on with after some of its letters.

Source: Jelassi et al. 2024, "Repeat after me" (arXiv 2402.01032), sections 2 and 3; the second is
its n-gram look-up.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from linearize.errors import UsageError

from .seeds import at_least, generator

_LETTERS = list(string.ascii_lowercase)


def copying(items: int, *, seed: int = 0, length: int = 64) -> list[dict[str, Any]]:
    """Strings of `length` random letters, to be written again from the start.

    Returns dicts with `context` ("Text: k f a"), `question` ("Copy:") and `answers` (one, the
    letters between blanks).
    """
    at_least(1, length=length)
    at_least(0, items=items)
    found = []
    for i in range(items):
        text = " ".join(generator(seed, i).choice(_LETTERS, length))
        found.append({"context": f"Text: {text}\n", "question": "Copy:", "answers": [text]})
    return found


def lookup(
    items: int, *, seed: int = 0, length: int = 64, n: int = 3, answer: int = 4
) -> list[dict[str, Any]]:
    """Strings in which the asked `n` letters occur once, to be gone on with for `answer` letters.

    Returns dicts as `copying` does; the question ends in the n letters. Raises `UsageError` where
    n + answer is more than the length, or no such letters can be found.
    """
    at_least(1, length=length, n=n, answer=answer)
    at_least(0, items=items)
    if n + answer > length:
        raise UsageError(f"length={length} is too short for {n} letters and {answer} after them")
    return [_lookup(generator(seed, i), length, n, answer) for i in range(items)]


def _lookup(rng: np.random.Generator, length: int, n: int, answer: int) -> dict[str, Any]:
    for _ in range(100):
        letters = [str(letter) for letter in rng.choice(_LETTERS, length)]
        grams = [tuple(letters[i : i + n]) for i in range(length - n + 1)]
        once = [i for i in range(length - n - answer + 1) if grams.count(grams[i]) == 1]
        if once:
            at = int(rng.choice(once))
            return {
                "context": f"Text: {' '.join(letters)}\n",
                "question": f"From the text: {' '.join(grams[at])}",
                "answers": [" ".join(letters[at + n : at + n + answer])],
            }
    raise UsageError(
        f"no {n} letters occur once among {length}; give a larger n or a shorter length"
    )


def token_accuracy(answer: str, prediction: str) -> float:
    """Share of the answer's letters that the prediction has in the same place."""
    wanted, given = answer.split(), prediction.split()
    return sum(a == b for a, b in zip(wanted, given, strict=False)) / len(wanted)
