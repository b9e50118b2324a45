"""Hand-over to the Triton kernels of flash-linear-attention 0.6 (CUDA only).

The kernels want one key/value head per query head and return one state per query head; the states
of a group are identical, so the first of each group is kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .backend import STEP_TOKENS


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """As `linearize.ops.gla.gla` without a mask; float32 in and out."""
    from fla.ops.gla import chunk_gla, fused_recurrent_gla

    groups = q.shape[2] // k.shape[2]
    k, v, g = (x.repeat_interleave(groups, 2) for x in (k, v, g))
    g = g.expand_as(k)  # the kernels want a decay for each channel
    if initial_state is not None:
        initial_state = initial_state.repeat_interleave(groups, 1)
    common = {
        "scale": 1.0,
        "initial_state": initial_state,
        "output_final_state": True,
        "cu_seqlens": None if cu_seqlens is None else cu_seqlens.to(q.device, torch.int64),
    }
    if q.shape[1] <= STEP_TOKENS and not torch.is_grad_enabled():
        o, state = fused_recurrent_gla(q, k, v, gk=g, **common)
    else:
        o, state = chunk_gla(q, k, v, g=g, **common)
    return o, state[:, ::groups]
