"""The published prompts of the six JRT tasks, character by character, quirks included.

`prompt` writes them from documents with the field names of the released data sets:

- fda, swde: `text`, `key`, `value`
- squad_completion: `text` (it ends with the cloze), `context`, `question`, `value`
- nq, drop, triviaqa: `context`, `question` (a cloze), `orig_question`, `answers` (nq: also
  `alt_answers`, `tok_pos`)

Source: arXiv 2407.05483, appendix on prompting, and its authors' evaluation harness.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from linearize.errors import InputError, UsageError, suggest

STOP = ("\n",)
MAX_NEW_TOKENS = 48
_SUMMARY = "Summary of information above..."  # in SWDE pages it heads a list of the answers
_MARKS = ("[PAR]", "[DOC]", "[TLE]")

Doc = Mapping[str, Any]


@dataclass(frozen=True)
class Truncation:
    """How documents are cut before they are repeated: a window around the answer.

    - `tokenizer`: the model's own (of transformers).
    - `context_length`, `answer_length`: a document keeps `context_length - answer_length` tokens.

    The window knows where the answer stands: scores are those of an oracle's truncation, the same
    for one reading and for two.
    """

    tokenizer: Any
    context_length: int = 1000
    answer_length: int = 50

    def cut(self, text: str, wanted: list[list[str]] | None, at: int | None = None) -> str:
        """The window of `text`, without blanks around it.

        - `wanted`: groups of alternatives; the window is around the first alternative of each group
          that occurs, and around the earliest of those. None = the head of the text.
        - `at`: the token to fall back to; else the end of the text.
        """
        ids = self.tokenizer(text, add_special_tokens=False, verbose=False).input_ids
        size = self.context_length - self.answer_length
        if wanted is None:
            place = 0
        else:
            firsts = (next(filter(None, (_find(text, one) for one in g)), None) for g in wanted)
            found = [match.start() for match in firsts if match is not None]
            if found or at is None:
                before = text[: min(found)] if found else text[:-1]
                at = len(self.tokenizer(before, add_special_tokens=False, verbose=False).input_ids)
            place = at
        start = max(0, place - size // 2)
        return self.tokenizer.decode(
            ids[start : start + size], clean_up_tokenization_spaces=False
        ).strip()


@dataclass(frozen=True)
class Template:
    """One task.

    - `document`: (doc, text, whether it will be read twice) -> the cleaned document.
    - `text`: the field that is cut and cleaned; `question`: what follows the last copy.
    - `cue`: what stands before the first copy.
    - `wanted`: what truncation looks for, see `Truncation.cut`.
    - `answers`: the gold strings of the containment metric.
    """

    name: str
    text: str
    document: Callable[[Doc, str, bool], str]
    question: Callable[[Doc], str]
    cue: Callable[[Doc], str]
    wanted: Callable[[Doc], list[list[str]] | None]
    answers: Callable[[Doc], list[str]]


def usable(task: str, doc: Doc) -> bool:
    """Whether the authors' harness keeps an item: keys and values of one character are dropped."""
    find(task)
    return all(len(str(doc[name])) > 1 for name in ("key", "value") if name in doc)


def prompt(
    task: str,
    doc: Doc,
    *,
    times: int = 2,
    cue: bool | None = None,
    truncation: Truncation | None = None,
) -> str:
    """The prompt of one document.

    - `times`: readings. 1 is the authors' default prompt, 2 their JRT-Prompt.
    - `cue`: whether the short question stands before the first copy; None = if read more than
      once, as published. `times=1, cue=True` is the control: the cue alone.
    - `truncation`: how the document is cut, before it is repeated; None = not at all.

    Raises `UsageError` for an unknown task or `times` below 1, `InputError` for a missing field.
    """
    template = find(task)
    if times < 1:
        raise UsageError(f"a document cannot be read {times} times; give 1 (once) or more")
    cue = times > 1 if cue is None else cue
    try:
        text = doc[template.text]
        if truncation is not None:
            text = truncation.cut(text, template.wanted(doc), doc.get("tok_pos"))
        last = template.document(doc, text, cue)
        question = template.question(doc)
        first = _squad_context(doc) if template.name == "squad_completion" else last
        parts = [first] * (times - 1) + [f"{last} {question}" if question else last]
        return (f"{template.cue(doc)} " if cue else "") + "\n".join(parts)
    except KeyError as error:
        raise InputError(
            f"a document of {task} has no field {error}; it has {', '.join(sorted(doc))}"
        ) from error


def find(task: str) -> Template:
    """The template called `task`. Raises `UsageError` naming the nearest one."""
    if task not in TEMPLATES:
        raise UsageError(f"there is no JRT task '{task}'{suggest(task, TEMPLATES)}")
    return TEMPLATES[task]


def _find(text: str, wanted: str) -> re.Match[str] | None:
    return re.search(re.escape(wanted), text, re.IGNORECASE)


def _without_question(text: str, question: str, *, once: bool = False) -> str:
    """The text without the question it ends with, however often; case does not matter.

    `once`: at most one time, and case matters.
    """
    rest = text.rstrip()
    if once:
        return rest.removesuffix(question)
    while question and rest[-len(question) :].lower() == question.lower():
        text = rest[: -len(question)]
        rest = text.rstrip()
    return text


def _fda(doc: Doc, text: str, twice: bool) -> str:
    return _stopped(_without_question(text, f"{doc['key']}:").strip("\n").strip("."))


def _swde(doc: Doc, text: str, twice: bool) -> str:
    text = _without_question(text.split(_SUMMARY)[0], f"{doc['key']}:").strip("\n")
    if twice:  # full stops before a blank stay
        return _stopped(text.strip(".").strip())
    return text.strip().strip(".") + "."


def _squad(doc: Doc, text: str, twice: bool) -> str:
    return text.strip()


def _squad_context(doc: Doc) -> str:
    return doc["context"].split("Question:")[0]


def _nq(doc: Doc, text: str, twice: bool) -> str:
    return _passage(_without_question(text, doc["question"].strip(), once=not twice), twice)


def _drop(doc: Doc, text: str, twice: bool) -> str:
    return _passage(_without_question(text, doc["question"].strip()), twice)


def _triviaqa(doc: Doc, text: str, twice: bool) -> str:
    for mark in _MARKS:
        text = text.replace(mark, "")
    return _drop(doc, text, twice)


def _passage(text: str, twice: bool) -> str:
    text = text.strip().strip(".")
    return (text.strip() if twice else text) + "."


def _stopped(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _key(doc: Doc) -> str:
    return doc["key"][:1].upper() + doc["key"][1:]


def _attribute(name: str, document: Callable[[Doc, str, bool], str]) -> Template:
    """FDA and SWDE: the value of an attribute of the document."""
    return Template(
        name,
        text="text",
        document=document,
        question=lambda doc: f"{_key(doc)}:",
        cue=lambda doc: f"Information about {_key(doc)}.",
        wanted=lambda doc: [[doc["key"]], [doc["value"]]],
        answers=lambda doc: [doc["value"]],
    )


def _cloze(
    name: str,
    document: Callable[[Doc, str, bool], str],
    *,
    cue: Callable[[Doc], str],
    wanted: Callable[[Doc], list[list[str]] | None] = lambda doc: None,
) -> Template:
    """NQ, DROP, TriviaQA: a passage and a statement whose end is missing."""
    return Template(
        name,
        text="context",
        document=document,
        question=lambda doc: doc["question"].strip(),
        cue=cue,
        wanted=wanted,
        answers=lambda doc: list(doc["answers"]),
    )


def _plain_question(doc: Doc) -> str:
    return doc["orig_question"].strip().strip(":")


TEMPLATES = {
    template.name: template
    for template in (
        _attribute("fda", _fda),
        _attribute("swde", _swde),
        Template(
            "squad_completion",
            text="text",
            document=_squad,
            question=lambda doc: "",
            cue=lambda doc: doc["question"],
            wanted=lambda doc: [[doc["value"]]],
            answers=lambda doc: [doc["value"]],
        ),
        _cloze(
            "nq",
            _nq,
            cue=_plain_question,
            wanted=lambda doc: [[*doc["answers"][:1], *doc.get("alt_answers", [])]],
        ),
        _cloze("drop", _drop, cue=_plain_question),
        _cloze("triviaqa", _triviaqa, cue=lambda doc: doc["orig_question"]),
    )
}
