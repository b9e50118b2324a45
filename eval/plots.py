"""Plots of a report: data in, one inline SVG string out. Needs matplotlib (the `plots` extra).

- Colours are CSS variables of the page (`var(--ink)`, `var(--teacher)`, ...), so one drawing is
  readable on light and on dark; text stays text and takes the page's font.
- The same data gives the same string: no dates, fixed salt for ids, no global state of pyplot.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from linearize.figures import bytes_text

# matplotlib wants real colours: these stand for the variables and are replaced in the SVG.
_VARIABLES = {
    "ink": "#010101",
    "line": "#010102",
    "teacher": "#010103",
    "student": "#010104",
    "window": "#010105",
    "trained": "#010106",
    **{f"s{i}": f"#01011{i}" for i in range(8)},
}
_SERIES = {
    "teacher": ("teacher", "teacher", "--"),
    "original": ("as it was", "teacher", "--"),
    "student": ("student", "student", "-"),
    "window_only_trained": ("window alone, trained", "trained", "-."),
    "window_only": ("window alone", "window", ":"),
}
_STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": _VARIABLES["ink"],
    "axes.labelcolor": _VARIABLES["ink"],
    "axes.edgecolor": _VARIABLES["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "xtick.color": _VARIABLES["ink"],
    "ytick.color": _VARIABLES["ink"],
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def training(
    records: Sequence[Mapping[str, Any]], objectives: Sequence[str], losses: Mapping[str, Any]
) -> str:
    """The training objective over tokens seen.

    - `records`: lines of `metrics.jsonl` that have `tokens` and `loss`.
    - `objectives`: names in the weighted sum. The `losses` of teacher and window, in nats, are
      drawn in only where the sum is the next-token loss alone; anything else has another scale.
    """
    with _figure("training") as (figure, axes):
        tokens = np.array([r["tokens"] for r in records], float)
        loss = np.array([r["loss"] for r in records], float)
        smooth = max(1, len(loss) // 20)
        if smooth == 1:
            axes.plot(tokens, loss, color=_VARIABLES["student"])
        else:
            axes.plot(tokens, loss, color=_VARIABLES["student"], lw=0.8, alpha=0.45)
            mean = np.convolve(loss, np.ones(smooth) / smooth, "valid")
            first = (smooth - 1) // 2
            axes.plot(tokens[first : first + len(mean)], mean, color=_VARIABLES["student"])
        if list(objectives) == ["next_token"]:
            _references(axes, losses)
            axes.set_ylabel("next-token loss (nats/token)")
        else:
            axes.set_ylabel(f"objective: {' + '.join(objectives)}")
            if (loss > 0).all() and loss.max() > 10 * loss.min():
                axes.set_yscale("log")
        _token_axis(axes, "tokens seen")
        return _svg(figure, "training")


def held_out(points: Sequence[tuple[int, float]], losses: Mapping[str, Any]) -> str:
    """Loss on held-out text over tokens seen, between the lines of teacher and window alone.

    - `points`: (tokens seen, loss in nats per token), in order.
    """
    with _figure("held_out") as (figure, axes):
        axes.plot(*zip(*points, strict=True), color=_VARIABLES["student"], marker="o", ms=3.5)
        _references(axes, losses)
        axes.set_ylabel("held-out loss (nats/token)")
        _token_axis(axes, "tokens seen")
        return _svg(figure, "held_out")


def by_recurrences(points: Sequence[tuple[int, float]], losses: Mapping[str, Any]) -> str:
    """Held-out loss of a looped model over recurrences, beside the line of the original model.

    - `points`: (recurrences, loss in nats per token), in order.
    """
    with _figure("by_recurrences") as (figure, axes):
        axes.plot(*zip(*points, strict=True), color=_VARIABLES["student"], marker="o", ms=3.5)
        _references(axes, losses)
        axes.set_ylabel("held-out loss (nats/token)")
        axes.set_xscale("log", base=2)
        _token_axis(axes, "recurrences")
        return _svg(figure, "by_recurrences")


def by_position(
    edges: Sequence[float], curves: Mapping[str, Sequence[float | None]], window: int
) -> str:
    """Mean loss by position in the document.

    - `edges`: E + 1 ascending positions; `curves`: E means per name (`teacher`, `student`, ...),
      None or nan for an empty bin.
    - `window`: where the softmax window ends, marked.
    """
    with _figure("by_position") as (figure, axes):
        for name, (label, colour, style) in _SERIES.items():
            if name in curves:
                means = np.array([np.nan if v is None else v for v in curves[name]], float)
                # The last value is drawn twice, so that each step spans its whole bin.
                axes.step(
                    range(len(edges)),
                    np.append(means, means[-1:]),
                    where="post",
                    label=label,
                    color=_VARIABLES[colour],
                    ls=style,
                )
        if edges[0] < window < edges[-1]:
            place = float(np.interp(window, edges, range(len(edges))))
            axes.axvline(place, color=_VARIABLES["line"], lw=0.8)
            top = axes.get_xaxis_transform()
            axes.annotate(f" window: {window}", (place, 1), xycoords=top, va="top", fontsize=8)
        # Bins of equal width: they grow with position, and so does what is interesting in them.
        axes.set_xticks(range(len(edges)), [f"{edge:g}" for edge in edges])
        axes.set_xlabel("position in the document (tokens)")
        axes.set_ylabel("loss (nats/token)")
        axes.grid(axis="y", color=_VARIABLES["line"], lw=0.5, alpha=0.6)
        axes.legend()
        return _svg(figure, "by_position")


def memory(state_bytes: int, kv_bytes_per_token: int, *, longest: int = 131_072) -> str:
    """Bytes per sequence over its length: the constant state against a growing KV cache."""
    with _figure("memory") as (figure, axes):
        lengths = np.geomspace(16, longest, 60)
        axes.plot(
            lengths,
            lengths * kv_bytes_per_token,
            color=_VARIABLES["teacher"],
            ls="--",
            label="KV cache of the base",
        )
        axes.axhline(state_bytes, color=_VARIABLES["student"], label="state and window")
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: bytes_text(y)))
        axes.set_ylabel("bytes per sequence")
        _token_axis(axes, "length (tokens)")
        axes.legend()
        return _svg(figure, "memory")


def curves(
    lines: Mapping[str, Sequence[tuple[float, ...]]],
    *,
    xlabel: str,
    ylabel: str,
    log_x: bool = False,
    log_y: bool = False,
) -> str:
    """Lines of points (x, y) or (x, y, standard error), which becomes a bar.

    - `log_x`, `log_y`: logarithmic axes, the first in powers of two.
    """
    with _figure("curves") as (figure, axes):
        for index, (name, points) in enumerate(lines.items()):
            x, y, *errors = zip(*points, strict=True)
            axes.errorbar(
                x,
                y,
                yerr=errors[0] if errors else None,
                label=name,
                color=_VARIABLES[f"s{index % 8}"],
                ls=("-", "--", ":")[index // 8 % 3],
                marker="o",
                ms=3.5,
                capsize=2,
            )
        if log_x:
            axes.set_xscale("log", base=2)
        if log_y:
            axes.set_yscale("log")
        if ylabel == "bytes":
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: bytes_text(y)))
        axes.set_ylabel(ylabel)
        _token_axis(axes, xlabel)
        axes.legend(fontsize=8)
        return _svg(figure, "curves")


def damage(points: Sequence[tuple[int, float]], kept: Sequence[int]) -> str:
    """One bar per layer: by how much the loss rises, in nats; layers in `kept` stand out."""
    with _figure("damage") as (figure, axes):
        colours = [_VARIABLES["teacher" if layer in kept else "student"] for layer, _ in points]
        axes.bar(*zip(*points, strict=True), color=colours)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("layer")
        axes.set_ylabel("damage (nats/token)")
        return _svg(figure, "damage")


def mix(weights: Mapping[str, Sequence[float]]) -> str:
    """Learned weight of the recurrence, one row per layer and one column per head."""
    layers = sorted(weights, key=int)
    table = np.array([weights[layer] for layer in layers], float)
    rows, columns = table.shape
    largest = float(np.abs(table).max())
    limit = max(largest, 0.1)  # weights that hardly moved should not look as if they had
    decimals = 2 if largest in (0.0, limit) else min(1 - math.floor(math.log10(largest)), 5)
    with _figure("mix", height=min(0.9 + 0.3 * rows, 12)) as (figure, axes):
        colours = matplotlib.colormaps["PuOr"]
        drawn = axes.pcolormesh(table, cmap=colours, vmin=-limit, vmax=limit)
        if columns <= 16:
            for row, column in np.ndindex(table.shape):
                shade = colours(0.5 + table[row, column] / limit / 2)
                dark = np.dot(shade[:3], (0.3, 0.6, 0.1)) < 0.5
                axes.annotate(
                    f"{table[row, column].round(decimals) + 0.0:.{decimals}f}",
                    (column + 0.5, row + 0.5),
                    ha="center",
                    va="center",
                    fontsize=7.5,
                    color="white" if dark else "black",
                )
        axes.set_yticks(np.arange(rows) + 0.5, layers)
        steps = range(0, columns, max(1, columns // 16))
        axes.set_xticks([s + 0.5 for s in steps], [str(s) for s in steps])
        axes.invert_yaxis()
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("head")
        axes.set_ylabel("layer")
        if columns > 16:
            figure.colorbar(drawn, ax=axes)
        return _svg(figure, "mix")


@contextmanager
def _figure(name: str, *, height: float = 3.0) -> Iterator[tuple[Figure, Axes]]:
    """One figure with one axes, drawn under the house style."""
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": f"linearize-{name}"}):
        figure = Figure(figsize=(6.2, height), layout="constrained")
        yield figure, figure.add_subplot()


def _references(axes: Axes, losses: Mapping[str, Any]) -> None:
    for name, (label, colour, style) in _SERIES.items():
        value = losses.get(name)
        if name != "student" and value is not None:
            axes.axhline(
                value, color=_VARIABLES[colour], ls=style, lw=1.3, label=f"{label} {value:.3f}"
            )
    if axes.get_legend_handles_labels()[0]:
        axes.legend()


def _token_axis(axes: Axes, label: str) -> None:
    def short(count: float, _: Any) -> str:
        for factor, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
            if abs(count) >= factor:
                return f"{count / factor:g}{unit}"
        return f"{count:g}"

    if axes.get_xscale() == "log":  # powers of two are known by their full names
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    else:
        axes.xaxis.set_major_formatter(FuncFormatter(short))
        axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    axes.set_xlabel(label)
    axes.grid(axis="y", color=_VARIABLES["line"], lw=0.5, alpha=0.6)


def _svg(figure: Figure, name: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]  # XML and document type declarations have no place inside HTML
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg).replace("xlink:href", "href")
    # Ids are shared by all drawings on the page; a prefix keeps references inside their own.
    svg = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    for variable, colour in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg.rstrip()
