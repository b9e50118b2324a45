"""Mixes: how the recurrence and the softmax window become one output. One row per mix.

A row names the module that joins the two; further mixes need a row here and a line in
`spec.MIXES`, which is read without torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .spec import LigerSpec


class Mixing(nn.Module):
    """Joins recurrence and window to [B, T, H, V] float32, called with

    - `recurrence`: [B, T, H, V] float32; with `Mix.mass` one channel more, how much was read.
    - `window`: [B, T, H, V] float32.
    - `q`: [B, T, H, K], queries before rotary embedding.
    """

    def reset(self) -> None:
        """Give the parameters the values that an untrained conversion has."""
        for parameter in self.parameters():
            nn.init.zeros_(parameter)


class Fixed(Mixing):
    """o = w recurrence + (1 - w) window with w = `mix_weight` (Liger, eq. 8)."""

    def __init__(self, heads: int, size: int, spec: LigerSpec) -> None:
        super().__init__()
        self.share = spec.mix_weight

    def forward(self, recurrence: Tensor, window: Tensor, q: Tensor) -> Tensor:
        """As in `Mixing`."""
        return _between(window, recurrence, self.share)


class Learned(Mixing):
    """o = (1 - w) window + w recurrence, one w per query head, 0 at the start.

    At 0 the layer is the window alone, the part of the teacher's function that needs no state.
    `weight`: [H] float32.
    """

    def __init__(self, heads: int, size: int, spec: LigerSpec) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(heads, dtype=torch.float32))

    def forward(self, recurrence: Tensor, window: Tensor, q: Tensor) -> Tensor:
        """As in `Mixing`."""
        return _between(window, recurrence, self.weight[:, None])


def _between(window: Tensor, recurrence: Tensor, weight: Tensor | float) -> Tensor:
    """(1 - weight) window + weight recurrence, in the window's place if nothing is differentiated.

    One pass then, and no memory: neither is used again.
    """
    one_type = window.dtype == recurrence.dtype == getattr(weight, "dtype", window.dtype)
    if torch.is_grad_enabled() or not one_type:
        return window + weight * (recurrence - window)
    return window.lerp_(recurrence, weight)


class Joint(Mixing):
    """o = (window + m N) / (1 + m D): both halves under one normaliser.

    N_t = sum phi(q_t) phi(k_s) v_s over the tokens s that have left the window, D_t the same
    without v: with the softmax scores in place of the products of features this is softmax over
    all tokens, and m the window's share of its normaliser, inverted. That share depends on the
    query: m = exp(w + q u) START K / window, per head. At the start an old token counts START
    times as much as one in the window.
    `weight`: [H], `query`: [H, K] float32, w and u, 0 at the start.
    """

    START = 0.03
    MOST = 20.0  # exp() of it times any D fits float32

    def __init__(self, heads: int, size: int, spec: LigerSpec) -> None:
        super().__init__()
        self.start = math.log(self.START * size / spec.window)
        self.weight = nn.Parameter(torch.zeros(heads, dtype=torch.float32))
        self.query = nn.Parameter(torch.zeros(heads, size, dtype=torch.float32))

    def forward(self, recurrence: Tensor, window: Tensor, q: Tensor) -> Tensor:
        """As in `Mixing`."""
        weight = self.start + self.weight + (q.float() * self.query).sum(-1)
        mass = weight.clamp(max=self.MOST).exp().unsqueeze(-1)
        summed, count = recurrence[..., :-1], recurrence[..., -1:]
        share = 1 / (1 + mass * count)  # of the window; whole outputs are passed over twice
        if torch.is_grad_enabled():
            return torch.addcmul(window * share, summed, mass * share)
        return window.mul_(share).addcmul_(summed, mass * share)


@dataclass(frozen=True)
class Mix:
    """One mix.

    - `module`: (query heads, their size, spec) -> the module; None = the window alone, there is no
      recurrence.
    - `per_head`, `per_channel`: trained numbers per query head, and per channel of each.
    - `mass`: it is given the recurrence of a channel of ones too, behind those of the values.
    """

    module: Callable[[int, int, LigerSpec], Mixing] | None
    per_head: int = 0
    per_channel: int = 0
    mass: bool = False


MIXES = {
    "fixed": Mix(Fixed),
    "learned": Mix(Learned, per_head=1),
    "delayed": Mix(Learned, per_head=1),
    "joint": Mix(Joint, per_head=1, per_channel=1, mass=True),
    "window": Mix(None),
}


def of(spec: LigerSpec) -> Mix:
    """The mix of a spec."""
    return MIXES[spec.mix]
