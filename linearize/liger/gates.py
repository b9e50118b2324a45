"""Gate families: what the recurrence gets from the pretrained projections.

A family is one function and one decorator line. It receives q [B, T, H, K], k [B, T, Hk, K] and
v [B, T, Hk, V] in float32, before rotary embedding, and the gate normalizer n; it returns the
arguments of its op: q, k, v and the log decay g.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from .. import ops
from ..errors import UsageError, suggest

Prepare = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Gate:
    """One family: its op, the default of `LigerSpec.gate_normalizer`, and how inputs are made."""

    name: str
    normalizer: float
    prepare: Prepare
    op: Callable[..., tuple[Tensor, Tensor]]


GATES: dict[str, Gate] = {}


def gate(
    name: str, *, normalizer: float, op: Callable[..., tuple[Tensor, Tensor]] = ops.gla
) -> Callable[[Prepare], Prepare]:
    """Register a gate family under `name`."""

    def register(prepare: Prepare) -> Prepare:
        GATES[name] = Gate(name, normalizer, prepare, op)
        return prepare

    return register


def find(name: str) -> Gate:
    """The family called `name`. Raises `UsageError` naming the nearest one."""
    if name not in GATES:
        raise UsageError(f"gate '{name}' is not known{suggest(name, GATES)}")
    return GATES[name]


@gate("gla", normalizer=16.0)
def gla(q: Tensor, k: Tensor, v: Tensor, n: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Liger-GLA: softmax features over the channels of each head, the raw key as gate logit.

    Pooling the key to as many channels as it has is the identity (Liger, arXiv 2503.01496, eq. 7
    and table 1); the division by n is in the authors' code only.
    """
    return q.softmax(-1), k.softmax(-1), v, F.logsigmoid(k) / n
