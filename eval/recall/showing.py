"""Table and plot of the recall demonstration."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from linearize.errors import OutputError

Found = Sequence[Mapping[str, Any]]
_PLOTTED = {
    "teacher": ("black", "-"),
    "window only": ("tab:gray", "--"),
    "Liger": ("tab:blue", "-"),
    "Liger, announced": ("tab:blue", ":"),
    "Liger + JRT-Prompt": ("tab:orange", "-"),
    "Liger + prefix attention": ("tab:green", "-"),
}


def table(rows: Found) -> str:
    """Markdown: one table per task, accuracy in percent over the tokens of the document."""
    parts = []
    for task in dict.fromkeys(row["task"] for row in rows):
        here = [row for row in rows if row["task"] == task]
        lengths = {row["words"]: round(row["tokens"]) for row in here}
        parts.append(f"**{task}**: % right, over tokens of the document\n")
        parts.append(f"| | {' | '.join(map(str, lengths.values()))} | mean |")
        parts.append(f"|---|{'---:|' * (len(lengths) + 1)}")
        for name in dict.fromkeys(row["name"] for row in here):
            values = [100 * row["accuracy"] for row in here if row["name"] == name]
            cells = [*(f"{v:.0f}" for v in values), f"{sum(values) / len(values):.1f}"]
            parts.append(f"| {name} | {' | '.join(cells)} |")
        parts.append("")
    return "\n".join(parts)


def plot(rows: Found, path: Path) -> list[Path]:
    """Accuracy over length with standard errors, a panel per task, as a PNG file.

    Returns the files written: none without matplotlib. Raises `OutputError` if it cannot be.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(4.6 * len(tasks), 3.4), layout="constrained", dpi=130)
        panels = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axes, task in zip(panels, tasks, strict=True):
            for name, (colour, style) in _PLOTTED.items():
                own = [row for row in rows if row["task"] == task and row["name"] == name]
                axes.errorbar(
                    [row["tokens"] for row in own],
                    [100 * row["accuracy"] for row in own],
                    [100 * row["stderr"] for row in own],
                    color=colour,
                    ls=style,
                    lw=1.3,
                    marker=".",
                    label=name,
                )
            axes.set_title(task, fontsize=9)
            axes.set_xlabel("tokens of the document")
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_formatter("{x:g}")
            axes.set_ylim(-2, 102)
            axes.grid(axis="y", lw=0.5, alpha=0.4)
        panels[0].set_ylabel("% right")
        panels[-1].legend(frameon=False, fontsize=8)
        try:
            figure.savefig(path, metadata={"Software": None})
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error
    return [path]
