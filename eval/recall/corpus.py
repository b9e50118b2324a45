"""Text that teaches recall: lists of pairs and reports, each followed by questions about it.

A third of the documents is read once, a third is announced by its questions, and a third is
announced and read twice: a model that saw nothing but this text would not know what to make of
JRT-Prompt otherwise. Forms are those of the prompts (Arora et al. 2024, "Just read twice"). In half
of what is announced, the facts asked for end in "!": so that a model learns to see, while it reads,
which facts these are. No prompt of the demonstration has such marks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from . import extraction, pairs
from .extraction import Document
from .seeds import generator

FORMS = ("once", "announced", "twice")
WORDS = 80  # that are keys in lists of pairs


def write(path: Path, made: Iterable[str]) -> Path:
    """A JSONL file with one document per line under `text`."""
    with path.open("w", encoding="utf-8") as file:
        for text in made:
            file.write(json.dumps({"text": text}) + "\n")
    return path


def drills(documents: int, *, seed: int) -> Iterator[str]:
    """Lists of two to six pairs, told two to six times, each time in another order.

    Half of the tokens can be told from what was read, and only so: from these texts recall is
    learned first, and fast.
    """
    for i in range(documents):
        rng = generator(seed, i)
        count, readings = (int(n) for n in rng.integers(2, 7, 2))
        yield pairs.document(rng, count=count, words=WORDS, readings=readings).text


def texts(documents: int, *, seed: int, longest: int, questions: int = 4) -> Iterator[str]:
    """Documents with questions and answers.

    Args:
        seed: of the corpus; no two documents are equal but by chance.
        longest: words of a document read once, at most; lengths are spread evenly over octaves.
        questions: asked about a document, at most.
    """
    for i in range(documents):
        rng = generator(seed, i)
        words = int(2 ** rng.uniform(3, np.log2(longest)))
        form = FORMS[int(rng.integers(len(FORMS)))]
        if rng.random() < 0.5:
            made = pairs.document(rng, count=max(2, words // 2), words=WORDS)
        else:
            made = report(rng, words)
        count = min(len(made.facts), int(rng.integers(1, questions + 1)))
        asked = [list(made.facts)[i] for i in rng.permutation(len(made.facts))[:count]]
        yield told(made, asked, form, marked=bool(rng.random() < 0.5))


def report(rng: np.random.Generator, words: int) -> Document:
    """A report with a fact per eight words, up to all there are without codes."""
    attributes = int(np.clip(words // 8, 2, 11))
    return extraction.fda_document(rng, words=words, attributes=attributes, codes=False)


def told(made: Document, asked: list[str], form: str, *, marked: bool = False) -> str:
    """A document with its questions and their answers, in one of `FORMS`.

    `marked`: what is asked for ends in "!" wherever the document is read, if it is announced.
    """
    is_list = made.text.startswith("Pairs:")
    names = {key: key if is_list else _capital(key) for key in asked}
    answers = " ".join(
        f"{names[key]} {made.facts[key]}" if is_list else f"{names[key]}: {made.facts[key]}."
        for key in asked
    )
    if form == "once":
        return f"{made.text} {answers}"
    text = _marked(made, names, is_list) if marked else made.text
    cue = f"Information about {', '.join(names.values())}. "
    return cue + (f"{text}\n" if form == "twice" else "") + f"{text} {answers}"


def _marked(made: Document, names: dict[str, str], is_list: bool) -> str:
    text = made.text
    for key, name in names.items():
        fact = f" {name} {made.facts[key]}" if is_list else f" {name}: {made.facts[key]}"
        after = text.index(fact) + len(fact)
        text = f"{text[:after]}!{text[after + (not is_list) :]}"
    return text


def _capital(key: str) -> str:
    return key[0].upper() + key[1:]
