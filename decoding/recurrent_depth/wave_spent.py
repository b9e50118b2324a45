"""What a run of the wave cost, and what it looked like."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .request import Spent


@dataclass
class WaveSpent(Spent):
    """Also, per row: `widths`, positions in the wave at each step, and `trace` if it was asked for.

    A trace has an entry per step: `first` position, `tokens` that stood in the wave, recurrences
    `spent` on each position so far, and how many were `frozen` by the step.
    """

    widths: list[list[int]] = field(default_factory=list)
    trace: list[list[dict[str, Any]]] = field(default_factory=list)

    def row(self, row: int) -> dict[str, Any]:
        widths = self.widths[row]
        told = {
            **super().row(row),
            "wave_steps": len(widths),
            "mean_wavefront": sum(widths) / max(len(widths), 1),
        }
        return {**told, "trace": self.trace[row]} if self.trace else told
