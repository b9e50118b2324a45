"""Text that teaches recall: lists of pairs and reports, each followed by questions about it.

A document is read once, announced by its questions, or read twice with the announcement between
the readings, as where a whole prompt is repeated: from there on a model knows what to look for. One
that had seen nothing but documents read once would not know what to make of that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from . import extraction, pairs
from .extraction import Document
from .seeds import generator

FORMS = ("once", "announced", "twice")
WORDS = 80  # that are keys in lists of pairs
NUMBERS = 1  # that belong to a key
FACTS = 40  # kinds of them in reports

Told = tuple[str, str]  # what is read before the first answer, and the rest


def write(path: Path, made: Iterable[Told]) -> Path:
    """A JSONL file with one document per line: `text`, and `prompt`, with which it begins."""
    with path.open("w", encoding="utf-8") as file:
        for prompt, rest in made:
            file.write(json.dumps({"text": prompt + rest, "prompt": prompt}) + "\n")
    return path


def drills(documents: int, *, seed: int) -> Iterator[Told]:
    """Lists of two to six pairs, told two to six times, each time in another order.

    More than half of the tokens can be told from what was read, and only so: from these texts
    recall is learned first, and fast.
    """
    for i in range(documents):
        rng = generator(seed, i)
        count, readings = (int(n) for n in rng.integers(2, 7, 2))
        yield "", pair_list(rng, count, readings).text


def texts(
    documents: int,
    *,
    seed: int,
    longest: int,
    questions: int = 12,
    announced: int = 3,
    forms: Sequence[str] = FORMS,
) -> Iterator[Told]:
    """Documents with questions and answers.

    Args:
        seed: of the corpus; no two documents are equal but by chance.
        longest: words of a document read once, at most; the least are 8.
        questions: asked about a document that is read once, at most.
        announced: questions about another one, at most: the fewer, the more it pays to keep only
            what will be asked for.
        forms: drawn from.
    """
    for i in range(documents):
        rng = generator(seed, i)
        words = int(rng.integers(8, longest + 1))
        form = forms[int(rng.integers(len(forms)))]
        made = pair_list(rng, pairs_of(words)) if rng.random() < 0.5 else report(rng, words)
        most = questions if form == "once" else announced
        count = min(len(made.facts), int(rng.integers(1, most + 1)))
        asked = [list(made.facts)[i] for i in rng.permutation(len(made.facts))[:count]]
        yield told(made, asked, form)


def pair_list(rng: np.random.Generator, count: int, readings: int = 1) -> Document:
    """`count` pairs of a word and its numbers."""
    return pairs.document(rng, count=count, words=WORDS, readings=readings, numbers=NUMBERS)


def pairs_of(words: int) -> int:
    """How many pairs make a list of so many words."""
    return max(2, words // (1 + NUMBERS))


def report(rng: np.random.Generator, words: int) -> Document:
    """A report with as many facts as `words` words hold, and hardly any filler."""
    attributes = int(np.clip((words - 4) // 3, 2, FACTS))
    return extraction.fda_document(rng, words=words, attributes=attributes, easy=True)


def told(made: Document, asked: list[str], form: str) -> Told:
    """A document with its questions and their answers, in one of `FORMS`."""
    is_list = made.text.startswith("Pairs:")
    names = {key: key if is_list else _capital(key) for key in asked}
    stop = "" if is_list else "."
    first, *others = (f" {names[key]} {made.facts[key]}{stop}" for key in asked)
    question = f" {names[asked[0]]}"
    announcement = f"Information about {', '.join(names.values())}."
    read = _reading(made.text, announcement, form) + question
    return read, "".join([first.removeprefix(question), *others])


def _reading(text: str, announcement: str, form: str) -> str:
    """What is read of a document before its question, in one of `FORMS`."""
    if form == "once":
        return text
    return f"{announcement} {text}" if form == "announced" else f"{announcement} {text}\n{text}"


def _capital(key: str) -> str:
    return key[0].upper() + key[1:]
