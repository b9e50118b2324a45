"""Log-likelihoods of 5-shot questions: requests per second with and without shared beginnings.

The work is that of a multiple-choice task with random tokens: five examples, a question, four
answers of two tokens. The harness draws examples anew for every question, so that only its four
answers share them ("own"); tasks with fixed examples share them among all questions ("same").
With `--tasks` the requests of real tasks are taken instead. Beside what is gained stands what could
be if tokens were all that takes time: the tokens read without sharing, over those read with it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from linearize import pretrained
from linearize.errors import UsageError
from linearize.eval.harness.scoring import Row, Scorer

from . import shapes, task_scoring
from .drawing import Panel
from .registry import count
from .timing import compare

EXAMPLES, EXAMPLE, QUESTION, ANSWERS, ANSWER = 5, 60, 40, 4, 2  # counts, and lengths in tokens
QUESTIONS, BATCHES = 8, (8,)
COLUMNS = (
    "questions", "rows at once", "model", "reuse", "requests/s", "of without reuse", "of tokens"
)  # fmt: skip
PANELS = (Panel("requests per second", "batch", "requests_per_second", "requests/s"),)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    shapes.options(parser, "15m on the CPU, else 135m; random weights")
    parser.add_argument(
        "--questions", type=count, default=QUESTIONS, help=f"of each kind or task [{QUESTIONS}]"
    )
    parser.add_argument("--batches", type=count, nargs="+", default=BATCHES, metavar="ROWS")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")
    parser.add_argument("--tasks", nargs="+", metavar="TASK", help="real ones, with five examples")
    parser.add_argument(
        "--examples",
        choices=task_scoring.EXAMPLES_OF,
        default="drawn",
        help="of --tasks: drawn for each question, or the set's first for all of them [drawn]",
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of local tasks")
    parser.add_argument("--tokenizer", metavar="DIR", help="for --tasks with random weights")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    model, words, name = shapes.chosen(asked, device, "15m" if device.type == "cpu" else "135m")
    if asked.tasks:
        return f"scoring 5-shot tasks with {name}", _tasks(asked, model, words)
    records = run(model, questions=asked.questions, batches=asked.batches, seconds=asked.seconds)
    return f"scoring 5-shot questions with {name}", records


def _tasks(asked: argparse.Namespace, base: Any, tokenizer: Any) -> Iterator[dict[str, Any]]:
    if asked.tokenizer:
        tokenizer = pretrained.tokenizer(pretrained.locate(asked.tokenizer))
    if tokenizer is None:
        raise UsageError("random weights have no tokenizer; give --tokenizer DIR, or a model")
    if len(tokenizer) > base.config.vocab_size:
        raise UsageError(
            f"the tokenizer has {len(tokenizer):,} tokens and the model only "
            f"{base.config.vocab_size:,}; give one that fits"
        )
    tasks = task_scoring.requests_of(
        asked.tasks,
        data_dir=asked.data_dir,
        tokenizer=tokenizer,
        questions=asked.questions,
        examples=asked.examples,
    )
    return task_scoring.run(
        {"base": base, "converted": shapes.converted(base)},
        tasks,
        tokenizer=tokenizer,
        batches=asked.batches,
        seconds=asked.seconds,
    )


def run(
    base: Any,
    *,
    questions: int = QUESTIONS,
    batches: Sequence[int] = BATCHES,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One record per kind of examples and batch size.

    `examples`, `batch`, `requests`; by way (`base`, `base, reuse`, `converted`,
    `converted, reuse`): `seconds`, `requests_per_second` and `tokens` that were read, padding
    aside; by model `difference`, the largest between log probabilities with and without reuse.
    """
    models = {"base": base, "converted": shapes.converted(base)}
    for kind in ("own", "same"):
        requests = _requests(base.config.vocab_size, questions, same=kind == "same")
        for batch in batches:
            scores: dict[str, dict[int, Any]] = {}
            tokens: dict[str, int] = {}
            ways = {}
            for name, model in models.items():
                for reuse in (False, True):
                    called = f"{name}, reuse" if reuse else name
                    ways[called] = _way(
                        model, requests, batch, reuse, partial(_keep, called, scores, tokens)
                    )
            seconds_of = compare(ways, seconds=seconds)
            yield {
                "examples": kind,
                "batch": batch,
                "requests": len(requests),
                "tokens": tokens,
                "difference": {name: _difference(scores, name, requests) for name in models},
                "seconds": seconds_of,
                "requests_per_second": {n: len(requests) / s for n, s in seconds_of.items()},
            }


def _requests(vocabulary: int, questions: int, *, same: bool) -> list[Row]:
    draw = random.Random(0)

    def text(length: int) -> list[int]:
        return [draw.randrange(vocabulary) for _ in range(length)]

    fixed, found = text(EXAMPLES * EXAMPLE), []
    for _ in range(questions):
        context = (fixed if same else text(EXAMPLES * EXAMPLE)) + text(QUESTION)
        for _ in range(ANSWERS):
            answer = text(ANSWER)
            found.append(Row((*context, *answer[:-1]), len(answer), (answer[-1],)))
    return found


def _way(
    model: Any,
    requests: list[Row],
    batch: int,
    reuse: bool,
    keep: Callable[[dict[int, Any], int], None],
) -> Callable[[], None]:
    def score() -> None:
        found: dict[int, Any] = {}
        scorer = Scorer(model, batch_size=batch, shrink=False, reuse=reuse)
        scorer(requests, lambda some: found.update(some))
        keep(found, scorer.read)

    return score


def _keep(
    name: str, scores: dict[str, Any], tokens: dict[str, int], found: dict[int, Any], read: int
) -> None:
    scores[name], tokens[name] = found, read


def _difference(scores: dict[str, dict[int, Any]], name: str, requests: list[Row]) -> float:
    plain, reused = scores[name], scores[f"{name}, reuse"]
    return max(
        abs(plain[i].last[row.lasts[0]][0] - reused[i].last[row.lasts[0]][0])
        for i, row in enumerate(requests)
    )


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    speed = record["requests_per_second"]
    for way, value in speed.items():
        name, _, reuse = way.partition(", ")
        yield [
            record["examples"],
            str(record["batch"]),
            name,
            reuse and "yes",
            f"{value:.2f}",
            f"{value / speed[name]:.2f}",
            f"{record['tokens'][name] / record['tokens'][way]:.2f}",
        ]
