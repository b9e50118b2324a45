"""Attribute extraction: a document that states facts between other lines, and one is asked for.

`fda_like` and `swde_like` are look-alikes of FDA and SWDE (Arora et al. 2023), made of word lists
of our own, with the released sets' fields `doc_id`, `key`, `value`, `text`; their scores are not
comparable with published ones. The released files are read by `released`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from linearize.errors import InputError, UsageError, suggest

from .seeds import at_least, generator

Rng = np.random.Generator
Make = Callable[[Rng], str]

# Fields that a released file must have, by the set's name (HazyResearch's JSONL).
FIELDS = {
    "fda": ("text", "key", "value"),
    "swde": ("text", "key", "value"),
    "squad_completion": ("text", "context", "question", "value"),
    "nq": ("context", "question", "orig_question", "answers"),
    "drop": ("context", "question", "orig_question", "answers"),
    "triviaqa": ("context", "question", "orig_question", "answers"),
}


@dataclass(frozen=True)
class Document:
    """`text`, and the `facts` it states, in order of appearance; keys are as they are asked for."""

    text: str
    facts: dict[str, str]


@dataclass(frozen=True)
class _Kind:
    """A kind of documents: how it begins, what it states, what fills it, what joins the parts.

    `colon`: stands between key and value.
    """

    head: Make
    facts: Mapping[str, Make]
    filler: Sequence[Make]
    joint: str
    colon: str = ":"


def fda_like(
    items: int, *, seed: int = 0, words: int = 300, attributes: int = 10
) -> list[dict[str, str]]:
    """Questions about reports on medical devices, one per document.

    Args:
        items: how many.
        words: of a document, counted between blanks. Filler is added until there are as many, so
            that a document is up to a sentence longer, or as long as its facts.
        attributes: facts in a document, of the 16 kinds there are; the more, the harder.

    Returns dicts with `doc_id`, `key` (lower-cased), `value`, `text`. Raises `UsageError`.
    """
    return [_item("fdalike", _FDA, generator(seed, i), i, words, attributes) for i in range(items)]


def swde_like(
    items: int, *, seed: int = 0, words: int = 225, attributes: int = 7
) -> list[dict[str, str]]:
    """Questions about pages of films and colleges in turn; as `fda_like`, with 7 kinds of facts."""
    kinds = (_FILM, _COLLEGE)
    return [
        _item("swdelike", kinds[i % 2], generator(seed, i), i, words, attributes)
        for i in range(items)
    ]


def fda_document(rng: Rng, *, words: int, attributes: int, easy: bool = False) -> Document:
    """One report; arguments as in `fda_like`.

    `easy`: the facts are numbers with a unit, 40 kinds, so short that many stand in a short report.
    No colon stands behind a key: its value follows it at once.
    """
    kind = _FDA
    if easy:
        amounts = {key: _FDA.facts[key] for key in _AMOUNTS}
        kind = replace(_FDA, facts=amounts | _MEASURED, colon="")
    return _document(kind, rng, words, attributes)


def released(name: str, path: Path) -> list[dict[str, Any]]:
    """Rows of a released file (JSONL) that the user has, one of `FIELDS`.

    Raises `UsageError` for another set, `InputError` for a file that is missing, malformed, empty
    or without the fields the templates need (see `FIELDS`).
    """
    if name not in FIELDS:
        raise UsageError(f"there is no released set '{name}'{suggest(name, FIELDS)}")
    rows = []
    try:
        with Path(path).open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    rows.append(_row(name, line, f"{path}, line {number}"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}; give the JSONL file of {name}") from error
    if not rows:
        raise InputError(f"{path} holds no rows; give the JSONL file of {name}")
    return rows


def _row(name: str, line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where} is not JSON: {error.msg}") from error
    missing = [f for f in FIELDS[name] if not isinstance(row, dict) or f not in row]
    if missing:
        raise InputError(
            f"{where} has no field {', '.join(missing)}; {name} needs {', '.join(FIELDS[name])}"
        )
    return row


def _item(
    prefix: str, kind: _Kind, rng: Rng, number: int, words: int, attributes: int
) -> dict[str, str]:
    document = _document(kind, rng, words, attributes)
    key = str(rng.choice(list(document.facts)))
    value = document.facts[key]
    return {
        "doc_id": f"{prefix}-{number:04}",
        "key": key,
        "value": value,
        "text": document.text,
    }


def _document(kind: _Kind, rng: Rng, words: int, attributes: int) -> Document:
    """Facts in random order at random places between lines of filler."""
    at_least(1, words=words, attributes=attributes)
    if attributes > len(kind.facts):
        raise UsageError(f"attributes={attributes}: documents of this kind have {len(kind.facts)}")
    keys = [list(kind.facts)[i] for i in rng.permutation(len(kind.facts))[:attributes]]
    facts = {key: kind.facts[key](rng) for key in keys}
    head = kind.head(rng)
    lines = [
        f"{key[0].upper()}{key[1:]}{kind.colon} {value}{_stop(kind)}"
        for key, value in facts.items()
    ]
    missing = words - len(" ".join([head, *lines]).split())
    filler: list[str] = []
    while missing > 0:
        filler.append(_pick(rng, kind.filler)(rng))
        missing -= len(filler[-1].split())
    is_fact = np.arange(len(lines) + len(filler)) < len(lines)
    parts = (lines if fact else filler for fact in rng.permutation(is_fact))
    return Document(kind.joint.join([head, *(part.pop(0) for part in parts)]), facts)


def _stop(kind: _Kind) -> str:
    return "." if kind.joint == " " else ""


def _pick(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def _of(*options: str) -> Make:
    return lambda rng: _pick(rng, options)


def _word(options: str) -> Make:
    return _of(*options.split())


def _made(template: str, **parts: Make | range) -> Make:
    """Fills a template: ranges give numbers, functions give words."""

    def make(rng: Rng) -> str:
        return template.format_map(
            {
                name: _pick(rng, part) if isinstance(part, range) else part(rng)
                for name, part in parts.items()
            }
        )

    return make


def _letters(rng: Rng) -> str:
    return "".join(chr(65 + int(i)) for i in rng.integers(0, 26, 3))


_FIRST = _word("Amara Benno Clio Dario Edda Farid Greta Hugo Ilse Jarek Kira Lorenz")
_LAST = _word("Adler Bosko Castell Dorn Eriksen Fontan Grabow Hallak Iversen Jung Kessel")
_PERSON = _made("{first} {last}", first=_FIRST, last=_LAST)
_PLACE = _word("Alder Birch Cedar Dune Ember Fjord Garnet Harbor Indigo Juniper Kestrel")
_ANALYTE = _word("albumin calcium ferritin glucose insulin lactate myoglobin troponin urea")
_SMALL, _LARGE = range(2, 10), range(12, 100)

_FDA = _Kind(
    head=lambda rng: "Summary of the decision.",
    facts={
        "applicant": _made(
            "{place} {kind}", place=_PLACE, kind=_of("Diagnostics", "Assays", "Biotech", "Systems")
        ),
        "measurand": _ANALYTE,
        "type of test": _made(
            "{how} {what}",
            how=_of("quantitative", "qualitative"),
            what=_of("immunoassay", "electrode", "photometry", "chromatography"),
        ),
        "purpose for submission": _of("new device", "new specimen", "wider range", "new reader"),
        "device name": _made("{place} {mark}", place=_PLACE, mark=_of("One", "Plus", "Max", "Duo")),
        "classification": _of("class I", "class II", "class III"),
        "product code": _letters,
        "regulation section": _made("{a}.{b}", a=range(862, 867), b=range(1000, 6000)),
        "510(k) number": _made("K{n}", n=range(100000, 250000)),
        "predicate number": _made("K{n}", n=range(10000, 99999)),
        "storage temperature": _made("{n} degrees", n=range(2, 30)),
        "sample volume": _made("{n} microlitres", n=_LARGE),
        "shelf life": _made("{n} months", n=range(3, 40)),
        "calibrator": _made("lot {n}", n=range(100, 1000)),
        "contact": _PERSON,
        "site": _made("{place} {kind}", place=_PLACE, kind=_of("Park", "Street", "Hill", "Road")),
    },
    filler=(
        _made("Precision was studied over {n} days with {m} replicates.", n=_SMALL, m=_LARGE),
        _made("Recovery ranged from {n} to {m} percent.", n=range(90, 98), m=range(101, 110)),
        _made("The samples of {m} healthy adults were measured.", m=_LARGE),
        _made("Controls are supplied in {n} levels.", n=_SMALL),
        _made("No hook effect was seen up to {m} units.", m=_LARGE),
        _made("Reagents are stable for {m} days after opening.", m=_LARGE),
        _made("Interference from bilirubin was below {n} percent.", n=_SMALL),
        _made("The limit of detection was computed from {m} blanks.", m=_LARGE),
    ),
    joint=" ",
)
_AMOUNTS = ("storage temperature", "sample volume", "shelf life")
_SUBSTANCE = (
    "sodium potassium chloride magnesium phosphate iron zinc copper creatinine bilirubin cortisol "
    "estradiol prolactin testosterone thyroxine folate fibrinogen haptoglobin transferrin "
    "cholesterol lipase amylase ammonia protein calcium ferritin glucose insulin lactate myoglobin "
    "troponin urea albumin globulin keratin gastrin renin"
)
_MEASURED = {name: _made("{n} units", n=_LARGE) for name in _SUBSTANCE.split()}
_MENU = _of("Home", "News", "Sign in", "Help", "Photos", "Top 50", "Contact", "Privacy")
_REMARK = _of(
    "Was this helpful?", "Read more.", "Rated 4 of 5.", "Rated 2 of 5.", "Write a review."
)
_YEAR = _made("{n}", n=range(1930, 2024))
_FILM = _Kind(
    head=_made("The {place} {what}: all facts", place=_PLACE, what=_of("Letters", "Affair")),
    facts={
        "director": _PERSON,
        "produced by": _made("{a}, {b}", a=_PERSON, b=_PERSON),
        "country": _word("Chile Denmark Egypt Finland Ghana India Japan Kenya Norway Peru"),
        "category": _of("Feature", "Documentary", "Short subject", "Series"),
        "year": _YEAR,
        "mpaa rating": _of("G", "PG", "PG-13", "R", "NC-17", "Not rated"),
        "run time": _made("{n} minutes", n=range(60, 180)),
    },
    filler=(_MENU, _MENU, _REMARK),
    joint=" \n",
)
_COLLEGE = _Kind(
    head=_made("{place} College at a glance", place=_PLACE),
    facts={
        "president": _PERSON,
        "founded": _YEAR,
        "enrollment": _made("{a},{b}", a=_LARGE, b=range(100, 1000)),
        "in-state tuition": _made("${a},{b}", a=_LARGE, b=range(100, 1000)),
        "mascot": _of("Badgers", "Foxes", "Herons", "Miners", "Otters", "Pilots", "Ravens"),
        "type": _of("Public, coed", "Private, coed", "Private, women only"),
        "setting": _of("Urban", "Rural", "Suburban"),
    },
    filler=(_MENU, _MENU, _REMARK),
    joint=" \n",
)
