"""DITTO: a repeated sentence may not become more probable than `penalty` times its last copy.

Xu et al., "Learning to Break the Loop" (NeurIPS 2022, arXiv 2206.02369). The paper calls the factor
lambda and the share of such steps gamma; its code has the two names the other way round.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# The published code clamps at 1e-20: a loss of 46 and no gradient where it saturates.
FLOOR = 1e-6


def previous_copy(probabilities: Tensor, previous: Tensor) -> Tensor:
    """`[B, T]` probability of each target in the copy before, detached; 0 where there is none.

    - `probabilities`: `[B, T]` of the targets.
    - `previous`: `[B, T]` int64, index of the same target in the copy before, -1 = none.
    """
    found = probabilities.detach().gather(1, previous.clamp(min=0))
    return found.masked_fill(previous < 0, 0)


def loss(
    log_probs: Tensor, previous: Tensor, *, penalty: float, kind: str = "nl", floor: float = FLOOR
) -> Tensor:
    """Sum over the penalised targets; divide by `terms` for a mean.

    With p a target's probability and q that of the same target one copy earlier (no gradient):

    - `nl`: -log(max(1 - |p - penalty q|, floor)), the paper's loss; it also pulls p up
    - `nl_clip`: -log(max(1 - max(p - penalty q, 0), floor)), which only pushes down
    - `mse`: 3 (p - penalty q)^2 over all targets, first copy and prefix too, as published

    Args:
        log_probs: `[B, T]` float32 log-probabilities of the targets.
        previous: as in `previous_copy`.
        penalty: the paper's lambda; 0 makes `nl` unlikelihood on every copy but the first.
        kind: a row of `KINDS`.
        floor: smallest 1 - |p - penalty q|; below it there is no gradient.
    """
    p = log_probs.exp()
    excess = p - penalty * previous_copy(p, previous)
    return KINDS[kind](excess, previous >= 0, floor).sum()


def terms(previous: Tensor) -> Tensor:
    """How many targets are penalised, a scalar."""
    return (previous >= 0).sum()


def _unlikely(excess: Tensor, penalised: Tensor, floor: float) -> Tensor:
    return torch.where(penalised, -(1 - excess).clamp(min=floor).log(), 0)


KINDS: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "nl": lambda excess, penalised, floor: _unlikely(excess.abs(), penalised, floor),
    "nl_clip": lambda excess, penalised, floor: _unlikely(excess.clamp(min=0), penalised, floor),
    "mse": lambda excess, penalised, floor: 3 * excess.square(),
}
