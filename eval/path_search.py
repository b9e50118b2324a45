"""Search layer paths for a task, or for each of its questions, and tell what the result is worth.

Both searches look at the right answers. For one path per task that can be checked on items the
search never saw (`holdout`). One path per question is the published measurement (CoLa, arXiv
2507.07996): it asks whether *some* path answers right, an upper bound that no model can act on.
"""

from __future__ import annotations

import itertools
import math
import random
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from linearize.decoding.layer_path_search import Path, Search, front, search
from linearize.decoding.layer_paths import written
from linearize.errors import UsageError

from .path_evaluations import Evaluations
from .path_tasks import Choices

ORACLE = (
    "The search saw the right answers of these items. What it reports on them is an upper bound "
    "(an oracle), not what a path reaches on new questions."
)


def split(count: int, *, items: int, holdout: float, seed: int) -> tuple[list[int], list[int]]:
    """Places of the items to search on, and of those held out; drawn with `seed`.

    Raises `UsageError` for numbers out of range or a side without items.
    """
    if items < 1 or not 0 <= holdout < 1:
        raise UsageError(
            f"items={items}, holdout={holdout}: items start at 1 and the share held out lies "
            "between 0 and 1"
        )
    order = list(range(count))
    random.Random(seed).shuffle(order)
    order = order[:items]
    held = math.floor(len(order) * holdout + 0.5)
    if held == len(order) or (holdout and not held):
        raise UsageError(
            f"{len(order)} items cannot be split with holdout={holdout}; take more, or holdout=0"
        )
    return order[: len(order) - held], order[len(order) - held :]


def for_task(
    evaluations: Evaluations,
    layers: int,
    settings: Search,
    inside: Sequence[int],
    outside: Sequence[int],
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """One path for all items.

    - `inside`: items to search on; `outside`: items held out, may be empty.
    - `on_step`: called with the number of simulations done and their total.

    Returns `original`, `best` (highest reward, the shortest of equals) and `front`, each path with
    its text, `length`, the task's measure in the search and held out; `transfer`, how the best
    path differs from the original on held-out items, with its standard error (in nats per token
    for text); `points`, all (length, measure); `oracle` for multiple choice.
    """
    task = evaluations.task
    plain = tuple(range(layers))
    scores: dict[Path, list[float]] = {}
    done = itertools.count(1)

    def reward(path: Path) -> float:
        on_step(next(done), settings.simulations)
        try:
            scores[path] = evaluations(path, inside)
        except UsageError:  # the recurrent layers of a hybrid alone cannot run
            return 0.0
        return task.reward(scores[path], scores[plain])

    rewards = search(layers, reward, settings)
    edge = front({path: rewards[path] for path in scores})

    def row(path: Path) -> dict[str, Any]:
        found = {"path": written(path), "length": len(path)}
        found["search"] = _finite(task.summary(scores[path]))
        if outside:
            found["held_out"] = _finite(task.summary(evaluations(path, outside)))
        return found

    best = edge[-1]
    result = {
        "scope": "task",
        "measure": task.measure,
        "items": {"search": len(inside), "held_out": len(outside)},
        "simulations": len(scores),
        "original": row(plain),
        "best": row(best),
        "front": [row(path) for path in edge],
        "points": [(len(path), _finite(task.summary(found))) for path, found in scores.items()],
        "note": ORACLE,
    }
    if outside:
        result["transfer"] = _paired(evaluations(best, outside), evaluations(plain, outside))
    if isinstance(task, Choices):
        right = zip(*scores.values(), strict=True)
        result["oracle"] = {
            "some_path_is_right": sum(map(any, right)) / len(inside),
            "guessing_as_often": _guessing(task, inside, len(scores)),
        }
    return result


def for_each_item(
    evaluations: Evaluations,
    layers: int,
    settings: Search,
    items: Sequence[int],
    on_step: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """A search of its own for every question (the paper's measurement).

    Returns the `original` accuracy, the `oracle` accuracy (some path was right) beside that of
    guessing as often, the share of right answers that a shorter path gives too (`shortened`) and
    of wrong ones that some path corrects (`corrected`); `front`: the accuracy within a length;
    `questions`: the shortest right path of each. Raises `UsageError` for text.
    """
    task = evaluations.task
    if not isinstance(task, Choices):
        raise UsageError("a path for each item needs questions; text has no right answer")
    plain = tuple(range(layers))
    questions, simulations = [], 0
    done, total = itertools.count(1), settings.simulations * len(items)
    for item in items:

        def reward(path: Path, item: int = item) -> float:
            on_step(next(done), total)
            try:
                return evaluations(path, [item])[0]
            except UsageError:
                return 0.0

        found = search(layers, reward, settings)
        simulations = max(simulations, len(found))
        best = min((path for path, right in found.items() if right), key=len, default=None)
        questions.append(
            {
                "item": item,
                "original": bool(found[plain]),
                "path": None if best is None else written(best),
                "length": None if best is None else len(best),
            }
        )
    lengths = [q["length"] for q in questions if q["path"] is not None]
    before = [q for q in questions if q["original"]]
    wrong = [q for q in questions if not q["original"]]
    return {
        "scope": "item",
        "measure": "accuracy",
        "items": {"search": len(items), "held_out": 0},
        "simulations": simulations,
        "original": {"length": layers, "search": len(before) / len(items)},
        "oracle": {
            "some_path_is_right": len(lengths) / len(items),
            "guessing_as_often": _guessing(task, items, simulations),
            "shortened": _share([q["length"] < layers for q in before]),
            "corrected": _share([q["path"] is not None for q in wrong]),
            "mean_length": statistics.fmean(lengths) if lengths else None,
        },
        "front": [
            {"length": limit, "search": sum(n <= limit for n in lengths) / len(items)}
            for limit in sorted(set(lengths))
        ],
        "questions": questions,
        "note": ORACLE,
    }


def _guessing(task: Choices, items: Sequence[int], times: int) -> float:
    """Expected share of items that uniform guesses, `times` for each, hit at least once."""
    missed = [(1 - 1 / len(task.items[item].choices)) ** times for item in items]
    return 1 - statistics.fmean(missed)


def _paired(path: Sequence[float], original: Sequence[float]) -> dict[str, float | None]:
    differences = [a - b for a, b in zip(path, original, strict=True)]
    error = None
    if len(differences) > 1 and all(map(math.isfinite, differences)):
        error = statistics.stdev(differences) / math.sqrt(len(differences))
    return {"difference": _finite(statistics.fmean(differences)), "standard_error": error}


def _share(values: Sequence[bool]) -> float | None:
    return sum(values) / len(values) if values else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None  # JSON has no infinity
