"""A picture of a bench: one panel per figure, one line per way. Needs matplotlib (`plots`)."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from linearize.errors import InputError, OutputError, UsageError

Points = list[tuple[float, float]]
KINDS = (".svg", ".png", ".pdf")


@dataclass(frozen=True)
class Panel:
    """Field `y` of records, a value per way, over their field `x`; `only`: of which records."""

    title: str
    x: str
    y: str
    unit: str
    only: Mapping[str, Any] = field(default_factory=dict)


def lines(panel: Panel, records: Iterable[Mapping[str, Any]]) -> dict[str, Points]:
    """What is drawn in a panel: way -> points (x, y), by rising x."""
    found: dict[str, Points] = {}
    for record in records:
        if all(record.get(name) == value for name, value in panel.only.items()):
            for way, value in record.get(panel.y, {}).items():
                found.setdefault(way, []).append((record[panel.x], value))
    return {way: sorted(points) for way, points in found.items()}


def check(file: Path) -> None:
    """Raises `UsageError` for a kind of file that is not drawn, `OutputError` for a directory that
    is not there, `InputError` without matplotlib."""
    if file.suffix not in KINDS:
        raise UsageError(f"{file} must end with {', '.join(KINDS)}")
    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no directory {file.parent}")
    if importlib.util.find_spec("matplotlib") is None:
        raise InputError('a plot needs matplotlib: pip install "linearize[plots]"')


def draw(panels: Sequence[Panel], records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the panels that have anything to show. Raises as `check`, and `InputError` for none."""
    check(file)
    from matplotlib.figure import Figure

    shown = [(panel, drawn) for panel in panels if (drawn := lines(panel, records))]
    if not shown:
        raise InputError(f"nothing to draw in {file}: there are no records of what is drawn")
    figure = Figure(figsize=(5 * len(shown), 3.6), layout="constrained")
    for axes, (panel, drawn) in zip(
        figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True
    ):
        for way, points in drawn.items():
            axes.plot(*zip(*points, strict=True), marker="o", ms=3.5, label=way)
        axes.set_title(panel.title, fontsize=10)
        axes.set_xlabel(panel.x)
        axes.set_ylabel(panel.unit)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    try:
        figure.savefig(file)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error
