"""What the demonstration asks: documents of a given length, in the corpus's forms."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from . import corpus
from .extraction import Document
from .measure import Question
from .seeds import generator

TASKS = ("associative recall", "document extraction")


@dataclass(frozen=True)
class Asked:
    """One question about one document."""

    document: Document
    key: str

    @property
    def answer(self) -> str:
        """As it stands behind the prompt in the corpus."""
        return corpus.told(self.document, [self.key], "once")[1].strip()

    def prompt(self, form: str) -> str:
        """In one of `corpus.FORMS`, with the published question: of DROP or of FDA."""
        return corpus.told(self.document, [self.key], form)[0]


def ask(task: str, items: int, *, words: int, seed: int) -> list[Asked]:
    """Questions about documents of `words` words.

    `seed`: other than that of the corpus, so that no document is known.
    """
    found = []
    for i in range(items):
        rng = generator(seed, TASKS.index(task), words, i)
        if task == TASKS[0]:
            made = corpus.pair_list(rng, corpus.pairs_of(words))
        else:
            made = corpus.report(rng, words)
        found.append(Asked(made, str(rng.choice(list(made.facts)))))
    return found


def questions(asked: Sequence[Asked], form: str) -> list[Question]:
    """Prompt and answer of each."""
    return [(one.prompt(form), one.answer) for one in asked]
