"""What the demonstration asks: documents of a given length, in the published prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from linearize.decoding import jrt_templates

from . import corpus, pairs
from .extraction import Document
from .measure import Question
from .seeds import generator

# Readings of a document: name -> times it is read, and whether the question is announced.
READINGS = {"once": (1, False), "announced": (1, True), "twice": (2, True)}
TASKS = ("associative recall", "document extraction")


@dataclass(frozen=True)
class Asked:
    """One question about one document."""

    task: str
    document: Document
    key: str

    @property
    def answer(self) -> str:
        """As it stands behind the prompt in the corpus."""
        value = self.document.facts[self.key]
        return value if self.task == TASKS[0] else f"{value}."

    def prompt(self, reading: str) -> str:
        """One of `READINGS`: recall with the prompts of DROP, extraction with those of FDA."""
        times, cue = READINGS[reading]
        text = self.document.text
        if self.task == TASKS[0]:
            about = f"Information about {self.key}."
            doc = {"context": text, "question": self.key, "orig_question": about, "answers": []}
            return jrt_templates.prompt("drop", doc, times=times, cue=cue)
        doc = {"text": text, "key": self.key, "value": self.document.facts[self.key]}
        return jrt_templates.prompt("fda", doc, times=times, cue=cue)


def ask(task: str, items: int, *, words: int, seed: int) -> list[Asked]:
    """Questions about documents of `words` words (pairs: half as many).

    `seed`: other than that of the corpus, so that no document is known.
    """
    found = []
    for i in range(items):
        rng = generator(seed, TASKS.index(task), words, i)
        if task == TASKS[0]:
            made = pairs.document(rng, count=max(2, words // 2), words=corpus.WORDS)
        else:
            made = corpus.report(rng, words)
        found.append(Asked(task, made, str(rng.choice(list(made.facts)))))
    return found


def questions(asked: Sequence[Asked], reading: str) -> list[Question]:
    """Prompt and answer of each."""
    return [(one.prompt(reading), one.answer) for one in asked]
