"""The section of the repetition suite: how much each way to choose tokens repeats."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from .page import Figure, Section, curves, template
from .sources import Source

_CURVES = {"tp": "probability", "ip": "likelier than at first", "wr": "and the winner"}


def section(source: Source) -> Section:
    """A table per group of prompts with every figure, and the curves."""
    groups = [
        (group, list(dict.fromkeys(n for w in group["ways"].values() for n in w)), _figures(group))
        for group in source.values["groups"]
    ]
    body = template("repetition.html", groups=groups, values=source.values)
    return Section(f"Repetition: {source.name}", body)


def _figures(group: dict[str, Any]) -> list[Figure]:
    found = group["over_length"]
    middles = [(a + b) / 2 for a, b in pairwise(found["edges"])]
    lines = {
        name: [(x, y) for x, y in zip(middles, values, strict=True) if y is not None]
        for name, values in found["rep-4"].items()
    }
    drawn = [
        curves(
            f"{group['name']}-rep-4",
            f"{group['name']}: repeated 4-grams",
            "Share of 4-grams that occurred before, over what was generated.",
            lines,
            x="generated tokens",
            y="repeated 4-grams",
        )
    ]
    if reinforced := group.get("self_reinforcement"):
        drawn.append(
            curves(
                f"{group['name']}-self-reinforcement",
                f"{group['name']}: self-reinforcement",
                "Over copies of the same line or sentence.",
                {
                    label: list(enumerate(reinforced[name], start=1))
                    for name, label in _CURVES.items()
                },
                x="copies",
                y="share",
            )
        )
    return [one for one in drawn if one]
