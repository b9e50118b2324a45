"""Softmax attention with a mask, and with bounded scores."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor | None,
    *,
    scale: float,
    softcap: float | None = None,
) -> Tensor:
    """Softmax attention of q [B, H, T, K] over k and v [B, Hk, keys, *] -> [B, H, T, V].

    - `visible`: bool, broadcast to [B, H, T, keys]; None = every key.
    - `softcap`: c bounds the scores s to c tanh(s / c) (Gemma 2, arXiv 2408.00118, section 2).
    """
    grouped = q.shape[1] != k.shape[1]
    if softcap is None:
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible, scale=scale, enable_gqa=grouped
        )
    if grouped:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    scores = (q @ k.transpose(-1, -2)).to(torch.promote_types(q.dtype, torch.float32)) * scale
    scores = softcap * torch.tanh(scores / softcap)
    if visible is not None:
        # the least number, not -inf: rows of padding see nothing, and must not become NaN
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    return scores.softmax(-1).to(v.dtype) @ v
