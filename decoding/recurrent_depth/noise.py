"""Noise mixed into the states of a wave: how much, by recurrences spent, and how.

Diffusion forcing (arXiv 2510.14961) keeps drafts from settling too early with noise that fades
while a position is worked on. A schedule is a row of `SCHEDULES`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# (recurrences spent [...], recurrences of a finished token) -> share of the noise level [...]
Schedule = Callable[[Tensor, int], Tensor]


def constant(spent: Tensor, steps: int) -> Tensor:
    """The same at every step."""
    return torch.ones_like(spent)


def linear(spent: Tensor, steps: int) -> Tensor:
    """1 - n / r: gone when a token has had its recurrences (the paper's best)."""
    return (1 - spent / steps).clamp(min=0)


def sqrt(spent: Tensor, steps: int) -> Tensor:
    """1 - sqrt(n / r): falls fast at first."""
    return (1 - (spent / steps).sqrt()).clamp(min=0)


def dampened(spent: Tensor, steps: int) -> Tensor:
    """1 / (1 + n): the released code's default."""
    return 1 / (1 + spent)


SCHEDULES: dict[str, Schedule] = {f.__name__: f for f in (linear, sqrt, constant, dampened)}
MIXINGS = ("linear", "sqrt")


def mix(z: Tensor, fresh: Tensor, level: Tensor, mixing: str) -> Tensor:
    """States z [..., h] with some of fresh ones; `level` [...] in [0, 1].

    "linear": (1 - b) z + b u; "sqrt": sqrt(1 - b) z + sqrt(b) u, which keeps the variance.
    """
    b = level[..., None].to(z)
    if mixing == "sqrt":
        return torch.relu(1 - b).sqrt() * z + b.sqrt() * fresh
    return (1 - b) * z + b * fresh
