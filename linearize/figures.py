"""What the numbers of a `result.json` say, for the report and the model card alike.

All functions take the result as a plain dict; see `convert` for its keys.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

LABELS = {
    "teacher": "teacher: the base, full attention",
    "student": "student: the converted model",
    "window_only_trained": "window alone, trained with the same budget",
    "window_only": "window alone, untrained",
    "before": "converted, untrained",
}


@dataclass(frozen=True)
class Loss:
    """One row of the comparison. `loss` in nats per token; `ratio` to the teacher's perplexity."""

    name: str
    label: str
    loss: float
    perplexity: float
    ratio: float


def losses(result: dict[str, Any]) -> list[Loss]:
    """Measured losses in the order of `LABELS`; what was not measured is left out."""
    found = {name: value for name in LABELS if (value := result["losses"].get(name)) is not None}
    teacher = found["teacher"]
    return [
        Loss(name, LABELS[name], loss, _exp(loss), _exp(loss - teacher))
        for name, loss in found.items()
    ]


def change(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What a fine-tuning did to the perplexity and all that was measured: name, before, after."""
    losses, measured = result["losses"], result["measured"] or {"before": {}, "after": {}}
    after = measured["after"]
    return [
        ("perplexity", _exp(losses["before"]), _exp(losses["after"])),
        *((name, value, after[name]) for name, value in measured["before"].items()),
    ]


def by_recurrences(result: dict[str, Any]) -> list[tuple[str, float, float]]:
    """What a looped model was made of and what it became: label, loss, perplexity."""
    given = result["losses"]
    rows = {
        "the model as it was": given["original"],
        "cut, untrained, 1 recurrence": given["pruned"],
    }
    for count, loss in result["loss_by_recurrences"].items():
        rows[f"trained, {count} recurrence" + "s" * (count != "1")] = loss
    return [(name, loss, _exp(loss)) for name, loss in rows.items()]


def break_even(result: dict[str, Any]) -> int | None:
    """Tokens from which the state is no larger than the base's KV cache.

    None where it never is, and where layers kept as softmax have a KV cache of their own.
    """
    per_token = result["kv_bytes_per_token"]
    if not per_token or result["spec"]["keep_softmax"]:
        return None
    return math.ceil(result["state_bytes"]["total"] / per_token)


def bytes_text(count: float) -> str:
    """`1234567` as `1.2 MB`; decimal units."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
