"""As much filler as fits: lengths are counted by whatever will read the text."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linearize.errors import UsageError

Measure = Callable[[str], int]


def words(text: str) -> int:
    """Words between blanks."""
    return len(text.split())


def tokens(tokenizer: Any) -> Measure:
    """The tokens that a transformers tokenizer makes of a text, without special ones."""
    return lambda text: len(tokenizer(text, add_special_tokens=False).input_ids)


def filled(made: Callable[[int], str], measure: Measure, length: int) -> str:
    """`made(n)`, a text with n pieces of filler, for the largest n with `measure` up to `length`.

    Raises `UsageError` where even n = 0 is too long.
    """
    if (least := measure(made(0))) > length:
        raise UsageError(f"length={length} is too short: the task itself takes {least}")
    low, high = 0, 1
    while measure(made(high)) <= length:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if measure(made(middle)) <= length else (low, middle)
    return made(low)
