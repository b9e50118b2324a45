"""Mixes: how the recurrence and the softmax window become one output. One row per mix.

A row names the module that joins the two; further mixes need a row here and a line in
`spec.MIXES`, which is read without torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .spec import LigerSpec


class Mixing(nn.Module):
    """Joins recurrence and window, [B, T, H, *] float32 each, to [B, T, H, V]."""

    def reset(self) -> None:
        """Give the parameters the values that an untrained conversion has."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Fixed(Mixing):
    """o = w recurrence + (1 - w) window with w = `mix_weight` (Liger, eq. 8)."""

    def __init__(self, heads: int, spec: LigerSpec) -> None:
        super().__init__()
        self.share = spec.mix_weight

    def forward(self, recurrence: Tensor, window: Tensor) -> Tensor:
        """[B, T, H, V] each -> [B, T, H, V]"""
        return self.share * recurrence + (1 - self.share) * window


class Learned(Mixing):
    """o = (1 - w) window + w recurrence, one w per query head, 0 at the start.

    At 0 the layer is the window alone, the part of the teacher's function that needs no state.
    `weight`: [H] float32.
    """

    def __init__(self, heads: int, spec: LigerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def forward(self, recurrence: Tensor, window: Tensor) -> Tensor:
        """[B, T, H, V] each -> [B, T, H, V]"""
        return window + self.weight[:, None] * (recurrence - window)


@dataclass(frozen=True)
class Mix:
    """One mix.

    - `module`: (query heads, spec) -> the module; None = the window alone, there is no recurrence.
    - `per_head`: trained numbers per query head.
    """

    module: Callable[[int, LigerSpec], Mixing] | None
    per_head: int = 0


MIXES = {
    "fixed": Mix(Fixed),
    "learned": Mix(Learned, per_head=1),
    "window": Mix(None),
}


def of(spec: LigerSpec) -> Mix:
    """The mix of a spec."""
    return MIXES[spec.mix]
