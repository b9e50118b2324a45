"""Needle in a haystack: RULER's single 1 to 3 and multi-key 2 and 3, made without a network.

Source: Hsieh et al. 2024, "RULER" (arXiv 2404.06654), table 2. Questions, needles, depths and
lengths are RULER's. Its words come from a package and its essays from a hub: ours are lists of our
own and a text of the user's, which is why the tasks are called `local_niah_*`.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from linearize.errors import UsageError, suggest

from .filling import Measure, filled, words
from .passkey import FILLER
from .seeds import at_least, generator

Rng = np.random.Generator
RESERVED = 128  # tokens of the length that are kept for the answer
_DEPTHS = 40
_ADJECTIVES = """
ample amber blunt brisk calm candid damp eager faint gentle hasty humid idle jolly keen lanky mellow
modest narrow nimble odd plain quaint quick rigid rustic sharp silent solid spare stern tame tender
upbeat vague vivid warm wary witty young zesty
"""
_NOUNS = """
acorn anchor badge basket candle canyon copper desk drum elbow engine falcon feather garden glove
hammer helmet island jacket kettle ladder lantern magnet mirror needle nickel orchard paddle pebble
quartz ribbon saddle sailor tailor tunnel urchin valley velvet walnut window yogurt zipper
"""


@dataclass(frozen=True)
class Variant:
    """Kinds of haystack ("repeat", "essay", "needles"), key and value ("words", "numbers", ...)."""

    haystack: str
    key: str
    value: str


VARIANTS = {
    "single_1": Variant("repeat", "words", "numbers"),
    "single_2": Variant("essay", "words", "numbers"),
    "single_3": Variant("essay", "words", "uuids"),
    "multikey_2": Variant("needles", "words", "numbers"),
    "multikey_3": Variant("needles", "uuids", "uuids"),
}
_RANDOM: dict[str, Callable[[Rng], str]] = {
    "words": lambda rng: f"{rng.choice(_ADJECTIVES.split())}-{rng.choice(_NOUNS.split())}",
    "numbers": lambda rng: str(rng.integers(10**6, 10**7)),
    "uuids": lambda rng: str(uuid.UUID(bytes=rng.bytes(16), version=4)),
}


def niah(
    variant: str,
    items: int,
    *,
    seed: int = 42,
    length: int = 4096,
    essay: str | None = None,
    measure: Measure = words,
) -> list[dict[str, Any]]:
    """Prompts of one of `VARIANTS`, of at most `length - RESERVED`.

    Args:
        variant: name in `VARIANTS`.
        items: how many.
        length: of prompt and answer together, as `measure` counts.
        essay: text that hides the needle, repeated if it is too short; needed by single_2 and
            single_3.
        measure: as in `passkey`.

    Returns dicts with `context`, `question` (ends in the words that the answer follows) and
    `answers`. Raises `UsageError` for an unknown variant, a missing essay, or a length that is too
    short.
    """
    if variant not in VARIANTS:
        raise UsageError(f"there is no variant '{variant}'{suggest(variant, VARIANTS)}")
    at_least(0, items=items)
    kind = VARIANTS[variant]
    if kind.haystack == "essay" and not (essay and essay.strip()):
        raise UsageError(f"{variant} hides the needle in a text; give one as essay")
    # As in RULER, the needle stands between sentences.
    sentences = essay.replace("\n", " ").split(". ") if kind.haystack == "essay" else []
    return [_item(generator(seed, i), kind, sentences, length, measure) for i in range(items)]


def _item(
    rng: Rng, kind: Variant, sentences: list[str], length: int, measure: Measure
) -> dict[str, Any]:
    key, value = _RANDOM[kind.key](rng), _RANDOM[kind.value](rng)
    needle = _needle(kind, key, value)
    depth = float(rng.integers(_DEPTHS)) / (_DEPTHS - 1)
    make, joint = _hay(rng, kind, sentences, key)
    noun = kind.value[:-1]
    task = (
        f"A special magic {noun} is hidden within the following text. Make sure to memorize it. I "
        f"will quiz you about the {noun} afterwards.\n"
    )
    question = (
        f"\nWhat is the special magic {noun} for {key} mentioned in the provided text? The special "
        f"magic {noun} for {key} mentioned in the provided text is"
    )

    def context(pieces: int) -> str:
        hay = make(pieces)
        hay.insert(round(depth * pieces), needle)
        return task + joint.join(hay)

    text = filled(context, lambda text: measure(text + question), length - RESERVED)
    return {"context": text, "question": question, "answers": [value], "depth": round(100 * depth)}


def _needle(kind: Variant, key: str, value: str) -> str:
    return f"One of the special magic {kind.value} for {key} is: {value}."


def _hay(
    rng: Rng, kind: Variant, sentences: list[str], key: str
) -> tuple[Callable[[int], list[str]], str]:
    """What gives n pieces of haystack, the same first ones for any n, and what joins them."""
    if kind.haystack == "repeat":
        return lambda n: [FILLER] * n, "\n"
    if kind.haystack == "essay":
        return lambda n: [f"{sentences[i % len(sentences)].strip(' .')}." for i in range(n)], " "
    made: list[str] = []

    def needles(n: int) -> list[str]:
        while len(made) < n:
            other = _RANDOM[kind.key](rng)
            if other != key:  # the question has one answer
                made.append(_needle(kind, other, _RANDOM[kind.value](rng)))
        return made[:n]

    return needles, "\n"
