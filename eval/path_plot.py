"""The front of accuracy (or perplexity) and length, as a PNG. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def draw(result: dict[str, Any], file: Path) -> None:
    """Draw what `path_search` returned. Raises `ImportError` without matplotlib."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(6.4, 4), dpi=150, layout="constrained")
    axes = figure.subplots()
    points = [(x, y) for x, y in result.get("points", ()) if y is not None]
    if points:
        axes.scatter(*zip(*points, strict=True), s=10, color="0.7", label="paths that were run")
    for key, label, style in (
        ("search", "front, items of the search (oracle)", "o-"),
        ("held_out", "the same paths, held out", "s--"),
    ):
        line = [(r["length"], r[key]) for r in result["front"] if r.get(key) is not None]
        if line:
            axes.plot(*zip(*line, strict=True), style, ms=4, label=label, drawstyle="steps-post")
    original = result["original"]
    axes.plot(original["length"], original["search"], "k*", ms=11, label="the model as it is")
    if result["measure"] == "perplexity":
        axes.set_yscale("log")
    axes.set_xlabel("layers run")
    axes.set_ylabel(result["measure"])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(file, metadata={"Software": None})
