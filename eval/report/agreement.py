"""Teacher and student question by question: how often they answer alike."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from linearize.errors import InputError

from .sources import Source


@dataclass(frozen=True)
class Agreement:
    """Two models on the questions of one task that both were asked.

    - `items`: how many.
    - `same`: share of them with the same answer: the likeliest choice; where there is one target,
      whether it is the greedy continuation; where text is written, the text.
    - `error`: standard error of `same`.
    - `chance`: what `same` would be if each answered as often what it does, without regard to the
      question. None for texts.
    - `change`: mean of the student's metric less the teacher's, metric by metric, over these items.
    - `change_error`: standard errors of these means, of the differences of pairs: smaller than
      those of two independent samples, since the questions are the same.
    """

    task: str
    items: int
    same: float
    error: float
    chance: float | None
    change: dict[str, float]
    change_error: dict[str, float]


TITLE = "Agreement with the teacher, question by question"
COLUMNS = ["model", "task", "questions", "same answer, %", "by chance, %", "to the teacher, points"]
NOTE = (
    "The same answer: the likeliest choice; where there is one target, whether it is the greedy "
    "continuation; where text is written, the text. By chance: if each answered as often what it "
    "does, without regard to the question. Standard errors are those of pairs."
)


def rows(named: Iterable[tuple[str, Source]], teacher: Source) -> list[list[Any]]:
    """Cells under `COLUMNS`, a row per model that is not the teacher and task."""
    return [
        [name, one.task, one.items, *_percents(one)]
        for name, source in named
        if source is not teacher
        for one in between(source, teacher)
    ]


def _percents(one: Agreement) -> list[str | None]:
    return [
        f"{100 * one.same:.1f} ± {100 * one.error:.1f}",
        None if one.chance is None else f"{100 * one.chance:.1f}",
        ", ".join(
            f"{metric} {100 * change:+.1f} ± {100 * one.change_error[metric]:.1f}"
            for metric, change in one.change.items()
        ),
    ]


def between(student: Source, teacher: Source) -> list[Agreement]:
    """Tasks that both were evaluated on with `--log_samples`, in the student's order.

    Raises `InputError` for a file of samples that cannot be read.
    """
    found = []
    for task in student.values["results"]:
        own, theirs = _samples(student, task), _samples(teacher, task)
        pairs = [(own[key], theirs[key]) for key in own if key in theirs]
        if pairs:
            found.append(_of(task, pairs))
    return found


def _of(task: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> Agreement:
    answers = [(_answer(own), _answer(theirs)) for own, theirs in pairs]
    n = len(answers)
    same = sum(a == b for a, b in answers) / n
    chance = None
    if not any(isinstance(a, str) for a, _ in answers):
        ours, theirs = (Counter(side) for side in zip(*answers, strict=True))
        chance = sum(ours[answer] * theirs[answer] for answer in ours) / n**2
    changes = {
        metric: [float(a[metric]) - float(b[metric]) for a, b in pairs]
        for metric in _metrics(pairs[0][0])
        if all(_is_number(one.get(metric)) for pair in pairs for one in pair)
    }
    return Agreement(
        task,
        n,
        same,
        math.sqrt(same * (1 - same) / n),
        chance,
        {metric: math.fsum(values) / n for metric, values in changes.items()},
        {metric: _error(values) for metric, values in changes.items()},
    )


def _answer(sample: dict[str, Any]) -> int | bool | str:
    given = sample["filtered_resps"]
    if isinstance(given[0], str):
        return given[0]
    if len(given) == 1:
        return bool(given[0][1])
    likelihoods = [choice[0] for choice in given]
    return likelihoods.index(max(likelihoods))


def _samples(source: Source, task: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """What was answered; no samples, or rolling likelihoods of texts, which answer nothing."""
    path = source.path.parent / f"samples_{task}.jsonl"
    if not path.exists():
        return {}
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {
            (row["doc_hash"], row["prompt_hash"], row["filter"]): row
            for row in rows
            if isinstance(row["filtered_resps"][0], list | str)
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InputError(
            f"{path} is damaged ({type(error).__name__}: {error}); remove it, or evaluate again"
        ) from error


def _metrics(sample: dict[str, Any]) -> list[str]:
    # lm-eval keeps a log-likelihood under "perplexity", from which it makes one at the end.
    return [metric for metric in sample.get("metrics", []) if metric != "perplexity"]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _error(values: Sequence[float]) -> float:
    if len(values) < 2:
        return math.nan
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
