"""When a position of the wave has settled: one function per rule, a registry.

A rule only looks: which settled positions are frozen, and that a token is final only when all
left of it is, is the sampler's business.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Look:
    """A wave after a step, B rows of W positions. States are aligned by position.

    - `z` [B, W, h] now, `z1` after the step before, `z2` one more before; a position's initial
      state stands in for what is before its time.
    - `spent` [B, W] recurrences since its token, or one left of it, changed.
    - `unchanged` [B, W] steps in a row in which the token it predicts stayed the same.
    - `threshold` epsilon; `steps` r; `inner` r'.
    """

    z: Tensor
    z1: Tensor
    z2: Tensor
    spent: Tensor
    unchanged: Tensor
    threshold: float
    steps: int
    inner: int


def latent_diff(look: Look) -> Tensor:
    """||z - z1|| / ||z|| < epsilon (arXiv 2510.14961, section 3)."""
    return relative(look.z - look.z1, look.z) < look.threshold


def latent_acceleration_1(look: Look) -> Tensor:
    """||(z - z1) - (z1 - z2)|| / ||z|| < epsilon."""
    return relative((look.z - look.z1) - (look.z1 - look.z2), look.z) < look.threshold


def latent_acceleration_2(look: Look) -> Tensor:
    """The same over ||z|| + 1e-6."""
    change = (look.z - look.z1) - (look.z1 - look.z2)
    return relative(change, look.z, 1e-6) < look.threshold


def token_stability(look: Look) -> Tensor:
    """Its prediction stayed the same for r // r' steps."""
    return look.unchanged >= look.steps // look.inner


def fixed(look: Look) -> Tensor:
    """It has had r recurrences: no rule but the limit that holds for all."""
    return look.spent >= look.steps


def relative(change: Tensor, z: Tensor, small: float = 0.0) -> Tensor:
    """||change|| / (||z|| + small) over the last dimension."""
    return change.norm(dim=-1) / (z.norm(dim=-1) + small)


Rule = Callable[[Look], Tensor]
RULES: dict[str, Rule] = {
    "latent-diff": latent_diff,
    "latent-acceleration-1": latent_acceleration_1,
    "latent-acceleration-2": latent_acceleration_2,
    "token-stability": token_stability,
    "fixed": fixed,
}
