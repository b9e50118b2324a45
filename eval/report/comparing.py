"""Runs side by side: what they lost, what they score beside published numbers, what is left."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearize import figures
from linearize.errors import InputError

from . import agreement, published, tasks
from .page import Section, page, save, template
from .sources import RUNS, Source, read


@dataclass(frozen=True)
class Table:
    """`rows`: cells as numbers, texts, or None where there is nothing.

    - `turned`: shown with a column per row, for few rows of many columns.
    """

    title: str
    columns: list[str]
    rows: list[list[Any]]
    notes: list[str] = field(default_factory=list)
    turned: bool = False

    def shown(self) -> tuple[list[str], list[list[str]]]:
        """Head and lines as text."""
        lines = [self.columns, *([_text(cell) for cell in row] for row in self.rows)]
        if self.turned:
            lines = [list(line) for line in zip(*lines, strict=True)]
        return lines[0], lines[1:]


def tables(paths: Iterable[Path | str]) -> list[Table]:
    """What there is to compare in directories and files that the commands wrote.

    Raises `InputError` where nothing can be compared, or a file is damaged.
    """
    sources = read(paths)
    found = []
    try:
        for make in (_fidelity, _scores, _kept, _agreement):
            found += make(sources)
    except (KeyError, TypeError, AttributeError) as error:
        files = ", ".join(str(source.path) for source in sources)
        raise InputError(
            f"one of {files} is incomplete or damaged ({type(error).__name__}: {error})"
        ) from error
    if not found:
        raise InputError(
            "there is nothing to compare: give directories of `linearize convert`, `loop`, "
            "`finetune` or `eval --tasks`"
        )
    return found


def plain(found: Sequence[Table]) -> dict[str, Any]:
    """The tables as plain JSON types: title -> one object per row."""
    return {
        "tables": {
            table.title: [dict(zip(table.columns, row, strict=True)) for row in table.rows]
            for table in found
        },
        "notes": [note for table in found for note in table.notes],
    }


def write(found: Sequence[Table], out: Path) -> Path:
    """Write the tables as a page; returns its path. Raises `OutputError` if it cannot be."""
    body = template("comparison.html", tables=found)
    return save(out, page("Comparison", [Section("Comparison", body)]))


def _fidelity(sources: Sequence[Source]) -> Iterator[Table]:
    rows = []
    for source in (source for source in sources if source.kind in RUNS):
        result, losses = source.values, source.values["losses"]
        before, after, window, state = None, None, None, None
        if source.kind == "conversion":
            before, after, window = losses["teacher"], losses["student"], losses["window_only"]
            state = figures.bytes_text(result["state_bytes"]["total"])
        elif source.kind == "retrofit":
            before = losses["original"]
            after = min(result["loss_by_recurrences"].values())
        else:
            before, after = losses["before"], losses["after"]
        rows.append(
            [
                source.name,
                source.kind,
                Path(result["base"]["name"]).name,
                before,
                after,
                math.exp(after - before),
                window,
                result["tokens"],
                result["trained_parameters"],
                state,
                round(result["seconds"]),
            ]
        )
    if rows:
        columns = ["run", "what", "base", "loss before", "loss after", "perplexity ratio"]
        columns += ["window alone", "tokens", "trained", "state", "seconds"]
        notes = ["Losses in nats per held-out token; before: the teacher, or the model as it was."]
        data = {s.values["data"]["source"] for s in sources if s.kind in RUNS}
        if len(data) > 1:
            notes.append(f"The runs have different data ({', '.join(sorted(data))}).")
        yield Table("Fidelity", columns, rows, notes, turned=True)


def _scores(sources: Sequence[Source]) -> Iterator[Table]:
    found = _evaluated(sources)
    keys = dict.fromkeys(key for _, scores in found for key in scores)
    matched = {key: name for name, wanted in published.TASKS.items() if (key := wanted[:3]) in keys}
    rows: list[list[Any]] = [
        [name, None, *(_percent(scores.get(key)) for key in keys), None] for name, scores in found
    ]
    for row in published.ROWS if matched else ():
        own = [row.scores.get(matched[key]) if key in matched else None for key in keys]
        rows.append([row.model, row.tokens or None, *own, row.source])
    if rows:
        heads = [f"{task} {metric}, {shots}-shot" for task, metric, shots in keys]
        notes = ["Accuracies and their standard errors in percent, other metrics as they are."]
        if matched:
            notes.append(f"Published rows: {published.__doc__.partition(chr(10))[2]}")
        columns = ["model", "B tokens", *heads, "source"]
        yield Table("Tasks", columns, rows, [" ".join(note.split()) for note in notes])


def _kept(sources: Sequence[Source]) -> Iterator[Table]:
    """What is left of the teacher above chance."""
    evaluations = [source for source in sources if source.kind == "tasks"]
    first = tasks.teacher(evaluations, sources)
    if first is None:
        return
    found = _evaluated(sources)
    theirs = found[evaluations.index(first)][1]
    rows = []
    for source, (name, own) in zip(evaluations, found, strict=True):
        if source is first:
            continue
        kept = {
            column: 100 * (own[key].value - chance) / (theirs[key].value - chance)
            for column, (*task, chance) in published.TASKS.items()
            if (key := tuple(task)) in own and key in theirs and theirs[key].value > chance
        }
        mean = None
        if all(column in kept for column in published.OTHERS):
            mean = sum(kept[column] for column in published.OTHERS) / len(published.OTHERS)
        if kept:
            rows.append([name, None, kept.get(published.MMLU), mean, None])
    if any(row[2] is not None or row[3] is not None for row in rows):
        for row in published.KEPT:
            pair = [row.scores.get(column) for column in (published.MMLU, published.MEAN)]
            rows.append([row.model, row.tokens, *pair, row.source])
        yield Table(
            "Left of the teacher above chance, %",
            ["model", "B tokens", published.MMLU, published.MEAN, "source"],
            rows,
            ["(score - chance) / (teacher's - chance); the mean where all five were evaluated."],
        )


def _agreement(sources: Sequence[Source]) -> Iterator[Table]:
    """A row per model and task: how often it answers as its teacher does."""
    evaluations = [source for source in sources if source.kind == "tasks"]
    first = tasks.teacher(evaluations, sources)
    if first is None:
        return
    rows = agreement.rows(zip(tasks.names(evaluations), evaluations, strict=True), first)
    if rows:
        yield Table(agreement.TITLE, agreement.COLUMNS, rows, [agreement.NOTE])


Key = tuple[str, str, int | None]


def _evaluated(sources: Sequence[Source]) -> list[tuple[str, dict[Key, tasks.Score]]]:
    """(name, scores by task, metric and number of examples) of each evaluation."""
    evaluations = [source for source in sources if source.kind == "tasks"]
    return [
        (
            name,
            {
                (score.task.removeprefix("local_"), score.metric, score.shots): score
                for score in tasks.scores(source)
            },
        )
        for name, source in zip(tasks.names(evaluations), evaluations, strict=True)
    ]


def _percent(score: tasks.Score | None) -> str | None:
    if score is None:
        return None
    if not score.metric.startswith(("acc", "exact_match", "pass", "contains")):
        return score.text
    error = "" if score.error is None else f" ± {100 * score.error:.1f}"
    return f"{100 * score.value:.1f}{error}"


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, float):
        return f"{cell:.4f}" if abs(cell) < 20 else f"{cell:.1f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)
