"""Pictures of a wave: which positions were in work at each step, and how long they had been.

Steps run to the right, positions of the text downwards; the colour says how many recurrences a
position has had. The left edge of a column is where the text was final.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from linearize.errors import InputError, OutputError, UsageError

# Light to dark blue: more recurrences, darker. Ends of matplotlib's "Blues".
_LIGHT, _DARK = (222, 235, 247), (8, 48, 107)
_CELL = 12


def check(path: Path) -> None:
    """Raises `UsageError` for a file that cannot become a picture, `InputError` for what is needed
    to draw it and not installed, `OutputError` for a directory that is not there."""
    if path.suffix not in (".png", ".html"):
        raise UsageError(f"{path} names no kind of picture known here; end it with .png or .html")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no directory {path.parent}")
    if path.suffix == ".png":
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise InputError(
                'a PNG is drawn by matplotlib: pip install "linearize[plots]", or write .html'
            ) from error


def save(
    trace: Sequence[Mapping[str, Any]], path: Path, *, word: Callable[[int], str] = str
) -> None:
    """Draw a trace (see `WaveSpent`) into a .png or .html file.

    - `word`: what a token says.

    Raises as `check` does, and `OutputError` if the file cannot be written.
    """
    check(path)
    if not trace:
        raise InputError("the trace is empty: the text ended with its first token")
    try:
        if path.suffix == ".png":
            _png(trace, path, word)
        else:
            path.write_text(_html(trace, word), encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _extent(trace: Sequence[Mapping[str, Any]]) -> tuple[int, int, int]:
    """First position, number of positions, most recurrences."""
    first = min(step["first"] for step in trace)
    end = max(step["first"] + len(step["spent"]) for step in trace)
    return first, end - first, max(max(step["spent"]) for step in trace)


def _words(trace: Sequence[Mapping[str, Any]], word: Callable[[int], str]) -> list[str]:
    """What stood at each position last."""
    first, count, _ = _extent(trace)
    last = {step["first"] + i: t for step in trace for i, t in enumerate(step["tokens"])}
    return [word(last[p]) if p in last else "" for p in range(first, first + count)]


def _png(trace: Sequence[Mapping[str, Any]], path: Path, word: Callable[[int], str]) -> None:
    import numpy as np
    from matplotlib.figure import Figure

    first, count, _ = _extent(trace)
    grid = np.full((count, len(trace)), np.nan)
    for x, step in enumerate(trace):
        y = step["first"] - first
        grid[y : y + len(step["spent"]), x] = step["spent"]
    size = (min(max(4, 0.14 * len(trace) + 2), 40), min(max(3, 0.14 * count + 1), 40))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid, cmap="Blues", vmin=0, aspect="auto", interpolation="nearest")
    axes.set_xlabel("step")
    axes.set_ylabel("position")
    if count <= 120:
        labels = [f"{first + i} {_plain(w)}" for i, w in enumerate(_words(trace, word))]
        axes.set_yticks(range(count), labels, fontsize=6)
    figure.colorbar(image, ax=axes, label="recurrences")
    figure.savefig(path, dpi=120)


def _plain(text: str) -> str:
    """What any font has, and nothing that starts a formula."""
    return ascii(text)[1:-1].replace("$", r"\$")


def _html(trace: Sequence[Mapping[str, Any]], word: Callable[[int], str]) -> str:
    first, count, most = _extent(trace)
    cells = []
    for x, step in enumerate(trace):
        for i, (token, spent) in enumerate(zip(step["tokens"], step["spent"], strict=True)):
            position = step["first"] + i
            done = ", final" if i < step["frozen"] else ""
            said = f"step {x}, position {position}: {word(token)!r}, {spent} recurrences{done}"
            cells.append(
                f'<rect x="{x * _CELL}" y="{(position - first) * _CELL}" width="{_CELL - 1}" '
                f'height="{_CELL - 1}" fill="{_colour(spent / most)}">'
                f"<title>{escape(said)}</title></rect>"
            )
    right = len(trace) * _CELL + 4
    labels = [
        f'<text x="{right}" y="{(i + 0.8) * _CELL}">{first + i} {escape(repr(w)[1:-1])}</text>'
        for i, w in enumerate(_words(trace, word))
    ]
    mean = sum(len(step["spent"]) for step in trace) / len(trace)
    return f"""<!doctype html>
<meta charset="utf-8">
<title>Wave of {len(trace)} steps</title>
<style>body {{ font: 14px sans-serif; background: #fff; color: #222 }}
text {{ font: 10px monospace }}</style>
<p>{len(trace)} steps, {mean:.1f} positions at once, at most {most} recurrences for one of them.
Steps run to the right, positions downwards; darker: more recurrences. Point at a cell.</p>
<svg width="{right + 240}" height="{count * _CELL}">
{chr(10).join(cells)}
{chr(10).join(labels)}
</svg>
"""


def _colour(share: float) -> str:
    return "#" + "".join(
        f"{round(a + (b - a) * share):02x}" for a, b in zip(_LIGHT, _DARK, strict=True)
    )
