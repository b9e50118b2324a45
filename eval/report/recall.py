"""The section of the recall demonstration: who answers how much, over the length."""

from __future__ import annotations

from .page import Section, curves, template
from .sources import Source


def section(source: Source) -> Section:
    """A table and a figure per task, accuracies in percent."""
    rows, parts = source.values["rows"], []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        lines: dict[str, list[tuple[float, ...]]] = {}
        for row in here:
            point = (row["tokens"], 100 * row["accuracy"], 100 * row["stderr"])
            lines.setdefault(row["name"], []).append(point)
        drawn = curves(
            f"{source.name}-{task}",
            f"{task}: answers over length",
            "Bars are standard errors.",
            lines,
            x="tokens of the document",
            y="% right",
            log_x=True,
        )
        lengths = dict.fromkeys(row["tokens"] for row in here)
        means = {name: values.get(task) for name, values in source.values["means"].items()}
        parts.append((task, list(lengths), lines, means, drawn))
    body = template("recall.html", parts=parts, means=source.values["means"])
    return Section(f"Recall over length: {source.name}", body)
