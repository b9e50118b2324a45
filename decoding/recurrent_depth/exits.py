"""When a token has thought enough: one criterion each, a registry, and its automatic threshold.

A criterion looks at the state, or at the logits that the coda makes of it, measures how much they
have changed, and ends the recurrence when that is little. Averages are over the tokens of a pass:
several in the prompt, one afterwards.

Source: Geiping et al., arXiv 2502.05171, section 6.1 ("zero-shot adaptive compute"), and the
thresholds of its released code.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from linearize.errors import UsageError, suggest


@dataclass(frozen=True)
class Criterion:
    """One way to decide.

    - `look`: (what it reads, what it compares with, real [B, W] bool) -> (value [B], what the next
      look may compare with). It reads the state [B, W, h] and compares with another; or it reads
      the last token's logits [B, V] and compares with what it kept, None at its first look, whose
      value is then NaN.
    - `auto`: the threshold of the released code; `stable`: exit at or above it instead of below.
    - `released`: (logits [B, V]) -> what the released code compares its first look with, where
      that is not the initial state.
    """

    look: Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]
    auto: float
    reads: Literal["state", "logits"] = "state"
    stable: bool = False
    released: Callable[[Tensor], Any] | None = None

    def ends(self, value: float, threshold: float) -> bool:
        """Whether a row with this value stops."""
        return value >= threshold if self.stable else value < threshold


def _nothing(like: Tensor) -> Tensor:
    return torch.full((len(like),), float("nan"), device=like.device)


def _mean(x: Tensor, real: Tensor) -> Tensor:
    """Mean of x [B, W] over real tokens, [B]."""
    return x.where(real, x.new_zeros(())).sum(1) / real.sum(1)


def latent_diff(z: Tensor, before: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """||z - before|| / ||z||."""
    return _mean((z - before).norm(dim=-1) / z.norm(dim=-1), real), z


def cosine(z: Tensor, before: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """1 - cos(z, before); NaN where one of them is zero."""
    cos = (z * before).sum(-1) / (z.norm(dim=-1) * before.norm(dim=-1))
    return _mean(1 - cos, real), z


def entropy_diff(logits: Tensor, before: Tensor | None, real: Tensor) -> tuple[Tensor, Tensor]:
    """Change of the next token's entropy, in nats."""
    p = logits.softmax(-1)
    entropy = -(p * (p + 1e-10).log()).sum(-1)
    return (_nothing(p) if before is None else (entropy - before).abs()), entropy


def _divergence(p: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
    """KL(before || p) in nats."""
    if before is None:
        return _nothing(p), p
    ratio = before.clamp(min=1e-10).log() - p.clamp(min=1e-10).log()
    return (before * ratio).sum(-1), p


def kl(logits: Tensor, before: Tensor | None, real: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence of the next token's distribution from the last one seen."""
    return _divergence(logits.softmax(-1), before)


def minp_kl(logits: Tensor, before: Tensor | None, real: Tensor) -> tuple[Tensor, Tensor]:
    """KL divergence after what is below a tenth of the top probability became 1 / V."""
    p = logits.softmax(-1)
    p = p.masked_fill(p < 0.1 * p.amax(-1, keepdim=True), 1 / p.shape[-1])
    return _divergence(p / p.sum(-1, keepdim=True), before)


def argmax_stability(
    logits: Tensor, before: tuple[Tensor, Tensor] | None, real: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """How many looks in a row found the same most likely token as the look before."""
    best = logits.argmax(-1)
    if before is None:
        count = torch.zeros_like(best)
    else:
        count = (before[1] + 1).masked_fill(best != before[0], 0)
    return count.float(), (best, count)


def never(z: Tensor, before: Tensor, real: Tensor) -> tuple[Tensor, Tensor]:
    """0, which is never below 0: the recurrence runs to its end."""
    return z.new_zeros(len(z)), z


def _uniform(logits: Tensor) -> Tensor:
    return torch.full_like(logits, 1 / logits.shape[-1])


EXITS: dict[str, Criterion] = {
    "latent-diff": Criterion(latent_diff, 0.03),
    "cosine": Criterion(cosine, 1e-3),
    "entropy-diff": Criterion(
        entropy_diff, 1e-3, "logits", released=lambda logits: logits.new_full((len(logits),), 100.0)
    ),
    "kl": Criterion(kl, 1e-3, "logits", released=_uniform),
    "minp-kl": Criterion(minp_kl, 1e-5, "logits", released=_uniform),
    "argmax-stability": Criterion(argmax_stability, 5, "logits", stable=True),
    "none": Criterion(never, 0.0),
}


def resolve(name: str, threshold: float | Literal["auto"]) -> tuple[Criterion, float]:
    """The criterion and its threshold. Raises `UsageError` for what is unknown or out of range."""
    if name not in EXITS:
        raise UsageError(f"there is no exit criterion '{name}'{suggest(name, EXITS)}")
    criterion = EXITS[name]
    if threshold == "auto":
        return criterion, criterion.auto
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise UsageError(f"exit_threshold={threshold!r} is neither a number nor 'auto'")
    least = 1 if criterion.stable else 0
    if not least <= threshold < float("inf"):
        raise UsageError(
            f"exit_threshold={threshold} of '{name}' is out of range: a finite number from "
            f"{least}; 'auto' is {criterion.auto:g}"
        )
    return criterion, float(threshold)
