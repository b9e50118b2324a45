"""Plots of the repetition suite as PNG files. Needs matplotlib (the `plots` extra)."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from linearize.errors import OutputError

_CURVES = {"tp": "TP: probability", "ip": "IP: likelier than at first", "wr": "WR: and the winner"}


def draw(groups: Sequence[Mapping[str, Any]], out: Path) -> list[Path]:
    """Write `self_reinforcement.png` and `repetition_over_length.png`; one panel per group.

    - `groups`: as `repetition.run` returns them.

    Returns the files written: none without matplotlib, no first one without any curve. Raises
    `OutputError` if one cannot be written.
    """
    if importlib.util.find_spec("matplotlib") is None:
        return []
    reinforced = [group for group in groups if group.get("self_reinforcement")]
    files = []
    if reinforced:
        path = out / "self_reinforcement.png"
        _panels(reinforced, _self_reinforcement, "copies before", path)
        files.append(path)
    path = out / "repetition_over_length.png"
    _panels(groups, _over_length, "generated tokens", path)
    return [*files, path]


def _panels(groups: Sequence[Mapping[str, Any]], fill: Any, label: str, path: Path) -> None:
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        columns = min(2, len(groups))
        rows = math.ceil(len(groups) / columns)
        figure = Figure(figsize=(5 * columns, 3.2 * rows), layout="constrained", dpi=120)
        grid = figure.subplots(rows, columns, squeeze=False, sharey=True).flat
        for group, axes in zip(groups, grid, strict=False):
            fill(axes, group)
            axes.set_title(f"{group['name']} ({group['prompts']} prompts)", fontsize=9)
            axes.set_xlabel(label)
            axes.set_ylim(-0.02, 1.02)
            axes.grid(axis="y", lw=0.5, alpha=0.4)
        for axes in grid:  # a panel that no group fills
            axes.remove()
        figure.axes[0].legend(frameon=False, fontsize=8)
        try:
            figure.savefig(path, metadata={"Software": None})
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror}") from error


def _self_reinforcement(axes: Any, group: Mapping[str, Any]) -> None:
    for name, label in _CURVES.items():
        axes.plot(group["self_reinforcement"][name], label=label)


def _over_length(axes: Any, group: Mapping[str, Any]) -> None:
    found = group["over_length"]
    middles = [(a + b) / 2 for a, b in pairwise(found["edges"])]
    for name, curve in found["rep-4"].items():
        axes.plot(
            middles, [math.nan if v is None else v for v in curve], label=name, marker=".", lw=1.2
        )
    axes.set_ylabel("repeated 4-grams")
