"""Pass key: a number hidden in repeated sentences, at a given depth.

Source: Mohtashami and Jaggi 2023, "Landmark attention" (arXiv 2305.16300), section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from linearize.errors import UsageError

from .filling import Measure, filled, words
from .seeds import at_least, generator

DEPTHS = tuple(range(0, 101, 10))  # percent
_TASK = (
    "There is an important number hidden inside a lot of irrelevant text. Find it and memorize it."
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_QUESTION = "\nWhat is the pass key? The pass key is"


def passkey(
    items: int,
    *,
    seed: int = 0,
    length: int = 1024,
    digits: int = 5,
    depths: tuple[int, ...] = DEPTHS,
    measure: Measure = words,
) -> list[dict[str, Any]]:
    """Prompts of at most `length`, the depths taking turns.

    Args:
        items: how many.
        length: of context and question together, as `measure` counts.
        digits: of the number.
        depths: where the number is, in percent of the filler sentences before it.
        measure: length of a text; words between blanks unless given, for tests with a model its
            tokenizer's count.

    Returns dicts with `context`, `question`, `answers`, `depth`. Raises `UsageError` where not even
    the sentence with the number fits.
    """
    at_least(0, items=items)
    at_least(1, length=length, digits=digits)
    if not depths or not all(0 <= depth <= 100 for depth in depths):
        raise UsageError(f"depths={depths}: give percents between 0 and 100")
    found = []
    for i in range(items):
        rng, depth = generator(seed, i), depths[i % len(depths)]
        key = str(rng.integers(10 ** (digits - 1), 10**digits))
        made = _context(key, depth)
        context = filled(made, lambda text: measure(text + _QUESTION), length)
        found.append({"context": context, "question": _QUESTION, "answers": [key], "depth": depth})
    return found


def _context(key: str, depth: int) -> Callable[[int], str]:
    needle = f"The pass key is {key}. Remember it. {key} is the pass key."

    def made(lines: int) -> str:
        before = round(lines * depth / 100)
        filler = [FILLER] * before + [needle] + [FILLER] * (lines - before)
        return "\n".join([_TASK, *filler])

    return made
