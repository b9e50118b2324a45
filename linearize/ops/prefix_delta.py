"""Prefix attention under the delta rule: the prefix is written into the state before it is read.

The encoder's keys and values of the whole prefix are written first, one after another; where that
ends, E, is the state in which the causal pass begins:

    E   = state after (k_enc_j, v_enc_j) for all j in the prefix, from zeros
    S_t = delta(S_{t-1}; k_t, v_t) from S_0 = E,      o_t = q_t S_t      for all t

So every token sees the whole prefix, and there is one state. A state that is no sum cannot be added
to later, as `prefix` does with gated sums; without gates or replacing, both are the same layer. The
second pass also corrects what the first got wrong: an online least-squares fit, gone over twice.
Ours, after Arora et al., "Just read twice" (arXiv 2407.05483), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .delta import delta
from .prefix import check_prefix


def prefix_delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    k_enc: Tensor,
    v_enc: Tensor,
    beta_enc: Tensor,
    g_enc: Tensor,
    *,
    prefix: Tensor,
    mask: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The delta rule on rows that begin with an encoded prefix.

    - `q`, `k`, `v`, `beta`, `g`, `mask`, `backend`: as in `delta`.
    - `k_enc`, `v_enc`, `beta_enc`, `g_enc`: of the encoder, shapes of `k`, `v`, `beta`, `g`; what
      they hold behind the prefix does not matter.
    - `prefix`: [B, T] bool, True = token of the prefix. A row without one is plain `delta`.

    Returns `o` [B, T, H, V] in v's dtype and the state [B, Hk, K, V] in float32 (float64 for
    float64 input); `delta` goes on from it. Raises `UsageError` when shapes do not fit.
    """
    own = {"k": k, "v": v, "beta": beta, "g": g}
    encoder = {"k": k_enc, "v": v_enc, "beta": beta_enc, "g": g_enc}
    check_prefix(own, encoder, prefix)
    inside = prefix if mask is None else prefix & mask
    last = int(inside.any(0).nonzero().max()) + 1 if inside.any() else 0
    inside = inside[:, :last]
    here = inside[:, :, None, None]
    written = (torch.where(here, x[:, :last], 0) for x in encoder.values())
    nothing = q[:, :last, :, :0].new_zeros(*k[:, :last].shape)  # the encoder reads nothing
    _, bank = delta(nothing, *written, mask=inside, backend=backend)
    return delta(q, k, v, beta, g, initial_state=bank, mask=mask, backend=backend)
