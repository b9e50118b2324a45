"""Sections of evaluations on tasks: every model beside its teacher, and recall over length."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import agreement
from .page import Figure, Section, curves, template
from .sources import RUNS, Source

# Parameters of tasks that say how much there is to remember.
_SIZES = ("length", "count", "words", "second")


@dataclass(frozen=True)
class Score:
    """One metric of one task. `error`: its standard error, None where the harness has none.

    `sizes`: parameters of the task that say how much there is to remember.
    """

    task: str
    metric: str
    value: float
    error: float | None
    shots: int | None
    items: int | None
    higher: bool | None
    sizes: tuple[tuple[str, float], ...] = ()

    @property
    def text(self) -> str:
        error = "" if self.error is None else f" ± {self.error:.4f}"
        return f"{self.value:.4f}{error}"


def scores(source: Source) -> list[Score]:
    """Everything that an evaluation measured."""
    values, found = source.values, []
    for task, held in values["results"].items():
        for key, value in held.items():
            metric, comma, chosen = key.partition(",")
            if not comma or metric.endswith("_stderr") or not _is_number(value):
                continue
            error = held.get(f"{metric}_stderr,{chosen}")
            counts = values.get("n-samples", {}).get(task, {})
            higher = values.get("higher_is_better", {}).get(task, {})
            found.append(
                Score(
                    task,
                    metric if chosen == "none" else f"{metric}, {chosen}",
                    float(value),
                    float(error) if _is_number(error) else None,
                    values.get("n-shot", {}).get(task),
                    counts.get("effective"),
                    higher.get(metric) if isinstance(higher, dict) else None,
                    _sizes(values["configs"].get(task, {})),
                )
            )
    return found


def _sizes(config: dict[str, Any]) -> tuple[tuple[str, float], ...]:
    told = (config.get("metadata") or {}).get("parameters") or {}
    return tuple((size, told[size]) for size in _SIZES if _is_number(told.get(size)))


def called(source: Source) -> str:
    """What was evaluated, and how it read and chose where that is not the usual."""
    about = source.values.get("linearize", {})
    model = about.get("model") or source.values.get("config", {}).get("model") or source.name
    parts = [Path(str(model)).name or str(model)]
    if about.get("jrt", 1) > 1:
        parts.append(f"jrt {about['jrt']}")
    if about.get("recurrences"):
        parts.append(f"{about['recurrences']} recurrences")
    if about.get("remedies"):
        parts.append("+".join(about["remedies"]))
    return ", ".join(parts)


def teacher(evaluations: Sequence[Source], every: Sequence[Source]) -> Source | None:
    """The evaluation the others are compared with.

    That of the base of a run in `every`; else the only one that is no conversion, where others are.
    """
    bases = {s.values["base"]["hash"] for s in every if s.kind in RUNS}
    for source in evaluations:
        if source.values.get("linearize", {}).get("hash") in bases:
            return source
    plain = [s for s in evaluations if not s.values.get("linearize", {}).get("spec")]
    return plain[0] if len(plain) == 1 and len(evaluations) > 1 else None


def names(evaluations: Sequence[Source]) -> list[str]:
    """`called`, with the file where two are called the same."""
    plain = [called(source) for source in evaluations]
    return [
        f"{name} ({source.path.parent.name})" if plain.count(name) > 1 else name
        for name, source in zip(plain, evaluations, strict=True)
    ]


def section(evaluations: Sequence[Source], every: Sequence[Source]) -> Section:
    """A table per task; the first line is the teacher's where it is known."""
    first = teacher(evaluations, every)
    order = sorted(evaluations, key=lambda source: source is not first)
    body = template(
        "tasks.html",
        tables=list(_tables(order, first)),
        figures=[one for one in _over_length(order) if one],
        abouts=[
            (name, source.values.get("linearize", {}), source.path)
            for name, source in zip(names(order), order, strict=True)
        ],
        has_teacher=first is not None,
        agreement=agreement,
        agreements=agreement.rows(zip(names(order), order, strict=True), first) if first else [],
    )
    return Section("Tasks", body)


def _tables(order: Sequence[Source], first: Source | None) -> Iterator[dict[str, Any]]:
    found = {name: scores(source) for name, source in zip(names(order), order, strict=True)}
    whose = names(order)[0] if first is not None else None
    tasks = dict.fromkeys(score.task for some in found.values() for score in some)
    for task in tasks:
        metrics = dict.fromkeys(s.metric for some in found.values() for s in some if s.task == task)
        rows, one = [], None
        for name, some in found.items():
            own = {s.metric: s for s in some if s.task == task}
            if not own:
                continue
            one = one or next(iter(own.values()))
            theirs = {s.metric: s for s in found.get(whose, []) if s.task == task}
            cells = [
                (own.get(metric), None if name == whose else difference(own, theirs, metric))
                for metric in metrics
            ]
            rows.append((name, cells, name == whose, next(iter(own.values())).sizes))
        if len({row[-1] for row in rows}) > 1:
            rows = [(", ".join([n, *(f"{k} {v:,}" for k, v in s)]), *r, s) for n, *r, s in rows]
        rows = [tuple(row[:3]) for row in rows]
        yield {"task": task, "metrics": list(metrics), "rows": rows, "one": one}


def difference(
    own: dict[str, Score], theirs: dict[str, Score], metric: str
) -> tuple[float, float | None] | None:
    """How much more than the teacher, and the standard error of that for independent samples.

    None where the two were not asked the same: another length, or another number of examples.
    """
    if metric not in own or metric not in theirs:
        return None
    a, b = own[metric], theirs[metric]
    if (a.sizes, a.shots) != (b.sizes, b.shots):
        return None
    known = a.error is not None and b.error is not None
    return a.value - b.value, math.hypot(a.error, b.error) if known else None


def _over_length(order: Sequence[Source]) -> Iterator[Figure | None]:
    """Where one task was evaluated at several sizes."""
    lines: dict[tuple[str, str, str], dict[str, list[tuple[float, ...]]]] = {}
    for source in order:
        for score in scores(source):
            for size, value in score.sizes:
                point = (value, score.value, score.error or 0.0)
                of = lines.setdefault((score.task, score.metric, size), {})
                of.setdefault(called(source), []).append(point)
    for (task, metric, size), some in lines.items():
        if len({point[0] for points in some.values() for point in points}) > 1:
            yield curves(
                f"{task}-{metric}-{size}",
                f"{task}: {metric} over {size}",
                "Bars are standard errors.",
                {name: sorted(points) for name, points in some.items()},
                x=size,
                y=metric,
                log_x=True,
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
