"""Agreement over speed, with the front, as a PNG. Needs matplotlib (the `plots` extra)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linearize.errors import InputError, OutputError, UsageError

from .recurrent_depth import DIFFUSION

_MARKS = {"autoregressive": "k*", "adaptive": "gs", "self-speculative": "b^"}


def check(file: Path) -> None:
    """Raises `UsageError` for a name that is no PNG, `OutputError` for a directory that is not
    there, `InputError` without matplotlib."""
    if file.suffix != ".png":
        raise UsageError(f"{file} must end with .png")
    if not file.parent.is_dir():
        raise OutputError(f"{file} cannot be written: there is no directory {file.parent}")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise InputError('a plot needs matplotlib: pip install "linearize[plots]"') from error


def pareto(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those (speed, quality) that no other point beats in both, by rising speed."""
    best, front = float("-inf"), []
    for speed, quality in sorted(points, reverse=True):
        if quality > best:
            best = quality
            front.append((speed, quality))
    return front[::-1]


def draw(records: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Share of tokens equal to autoregression's over speed relative to it, batch 1.

    Raises as `check` does, and `InputError` where no text was compared (random weights).
    """
    check(file)
    from matplotlib.figure import Figure

    single = [r for r in records if r["batch"] == 1 and "equal" in r]
    if not single:
        raise InputError("nothing to draw: texts are compared at batch 1, with trained weights")
    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    waves = [r for r in single if r["sampler"] == DIFFUSION]
    for inner in sorted({r["told"]["inner_recurrence"] for r in waves}):
        some = [r for r in waves if r["told"]["inner_recurrence"] == inner]
        axes.scatter(
            [r["cpu_ratio"] for r in some],
            [r["equal"] for r in some],
            s=18,
            label=f"diffusion forcing, r' = {inner}",
        )
    for record in single:
        if record["sampler"] in _MARKS:
            mark = _MARKS[record["sampler"]]
            point = record["cpu_ratio"], record["equal"]
            axes.plot(*point, mark, ms=9, label=record["sampler"])
    line = pareto([(r["cpu_ratio"], r["equal"]) for r in single])
    axes.plot(*zip(*line, strict=True), color="0.6", lw=1, zorder=0, label="front")
    axes.set_xlabel("tokens/s, of autoregression")
    axes.set_ylabel("tokens equal to autoregression's")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=7)
    try:
        figure.savefig(file, metadata={"Software": None})
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error
