"""Phone book: lines `Name: number`, and a name whose number is asked for.

Source: Jelassi et al. 2024, "Repeat after me" (arXiv 2402.01032), section 4.2.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from linearize.errors import UsageError

from .seeds import at_least, generator

COUNTS = (10, 20, 40, 80, 160, 320)
_STARTS = "Al Be Cor Da El Fen Gus Har Is Jo Kel Lu Mar Nor Os Pet Quin Ro Sel Tom"
_ENDS = "a bert dan eth fine gor hild ian ka lin mo na ra ric son tan us vin wen ya"
NAMES = [start + end for start in _STARTS.split() for end in _ENDS.split()]  # 400


def phonebook(
    items: int, *, seed: int = 0, count: int = 20, demonstrations: int = 2
) -> list[dict[str, Any]]:
    """Books of `count` unique names with numbers of seven digits.

    Args:
        items: how many.
        count: lines of the book, up to 400.
        demonstrations: lines repeated after the book, to show what is asked; others than the one
            asked for.

    Returns dicts with `context` (book and demonstrations), `question` ("Name:") and `answers` (the
    number). Raises `UsageError` for a count outside its range.
    """
    at_least(0, items=items, demonstrations=demonstrations)
    at_least(demonstrations + 1, count=count)
    if count > len(NAMES):
        raise UsageError(f"count={count}: there are {len(NAMES)} names")
    return [_item(generator(seed, i), count, demonstrations) for i in range(items)]


def _item(rng: np.random.Generator, count: int, demonstrations: int) -> dict[str, Any]:
    names = [NAMES[i] for i in rng.permutation(len(NAMES))[:count]]
    numbers = rng.integers(1_000_000, 10_000_000, count)
    lines = [f"{name}: {number}" for name, number in zip(names, numbers, strict=True)]
    asked, *shown = rng.permutation(count)[: demonstrations + 1]
    parts = ["\n".join(lines) + "\n"]
    if shown:
        parts.append("From the book above:\n" + "".join(f"{lines[i]}\n" for i in shown))
    return {
        "context": "\n".join(parts),
        "question": f"{names[asked]}:",
        "answers": [str(numbers[asked])],
    }
