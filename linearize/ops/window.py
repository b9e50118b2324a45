"""Sliding-window softmax attention: token t sees itself and the `window - 1` real tokens before it.

`dense` is the definition, one score per pair of tokens. Long rows go through `native.window` or
`window_blocks`: linear in the length, exact.
Source: Beltagy et al., "Longformer" (arXiv 2004.05150), section 3.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from .backend import allows
from .chunks import ChunkGrid
from .native import call
from .native import window as native
from .packed import Packed, check_cu_seqlens, document_ids, mostly_real
from .sinks import Sinks
from .softmax import attend
from .window_blocks import block_size, blocked


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Sinks | None = None,
) -> Tensor:
    """Causal softmax attention over the last `window` real tokens, the token itself included.

    - `q`: [B, T, H, K], rotated; `H` a multiple of `Hk`. With fewer queries than keys, the queries
      are the last T of the P + T keys.
    - `k`: [B, P + T, Hk, K], rotated; `v`: [B, P + T, Hk, V].
    - `mask`: [B, P + T] bool, True = real token. Others are seen by nobody and give output 0; they
      do not count in the window.
    - `cu_seqlens`: [S + 1] boundaries of sequences packed in one row (B = 1, P = 0).
    - `scale`: of the scores; None = K ** -0.5. `softcap`: their bound, as in `attend`.
    - `sinks`: first tokens of each sequence that are seen too, once the window has left them.

    Returns [B, T, H, V] in the input's dtype. Raises `UsageError` when shapes do not fit.
    """
    _check(q, k, v, window, mask, cu_seqlens)
    how = {"window": window, "scale": q.shape[-1] ** -0.5 if scale is None else scale}
    how["softcap"] = softcap
    T, keys = q.shape[1], k.shape[1]
    if cu_seqlens is None and T * keys <= window * window:
        return dense(q, k, v, mask=mask, sinks=sinks, **how)
    if mask is None and cu_seqlens is None:
        return _rows(q, k, v, sinks=sinks, **how)
    if mask is None:
        return _documents(q, k, v, check_cu_seqlens(cu_seqlens, *q.shape[:2]), sinks, **how)
    if keys > T:  # queries for the past too: at most a window of them, and one path for all lengths
        q = F.pad(q, (0, 0, 0, 0, keys - T, 0))
    if sinks is None and _ends_padded(mask) and mostly_real(mask):
        o = _rows(q, k, v, **how)
        o = o.where(mask[:, :, None, None], o.new_zeros(()))
    else:
        packed = Packed.from_mask(mask)
        if sinks is not None:
            sinks = replace(sinks, number=packed.pack(sinks.number))
        row = (packed.pack(x) for x in (q, k, v))
        o = packed.unpack(_documents(*row, packed.cu_seqlens, sinks, **how))
    return o[:, keys - T :]


def _rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    documents: Tensor | None = None,
    sinks: Sinks | None = None,
    **how: Any,
) -> Tensor:
    """Rows without padding, in C where that form knows the case, else in blocks."""
    if _in_c(q, k, v, how["softcap"], sinks):
        how.pop("softcap")
        n = 0 if sinks is None else sinks.k.shape[1]
        return native.window_attention(q, k, v, documents=documents, sinks=n, **how)
    T, keys = q.shape[1], k.shape[1]
    if keys > T:
        q = F.pad(q, (0, 0, 0, 0, keys - T, 0))
    return blocked(q, k, v, documents=documents, sinks=sinks, **how)[:, keys - T :]


def _in_c(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, sinks: Sinks | None) -> bool:
    known = sinks is None or (sinks.there and sinks.k.shape[1] <= call.LEAST)
    return known and softcap is None and allows("native") and call.takes(q, k, v)


def _ends_padded(mask: Tensor) -> bool:
    """Whether padding stands at the rows' ends alone, where no real token sees it."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def _documents(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, sinks: Sinks | None, **how: Any
) -> Tensor:
    """Sequences packed in one row; with sinks, which differ, each fills blocks of its own."""
    documents = document_ids(cu_seqlens, q.device)
    if sinks is None or not documents.numel() or _in_c(q, k, v, how["softcap"], sinks):
        return _rows(q, k, v, documents=documents, sinks=sinks, **how)
    size = block_size(how["window"])
    grid = ChunkGrid(1, q.shape[1], cu_seqlens, size, q.device)
    own = grid.split(documents[None] + 1) - 1  # [M, block], -1 behind a document's end
    each = own[:, 0]
    row = (grid.split(x).flatten(0, 1)[None] for x in (q, k, v))
    number = grid.split(sinks.number).view(1, -1)
    there = Sinks(sinks.k[each], sinks.v[each], number)
    o = blocked(*row, documents=own.flatten(), sinks=there, **how)
    return grid.join(o[0].unflatten(0, (-1, size)))


def dense(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    mask: Tensor | None = None,
    scale: float,
    softcap: float | None = None,
    sinks: Sinks | None = None,
) -> Tensor:
    """The definition. Shapes as in `window_attention`; the window counts real tokens."""
    T, keys = q.shape[1], k.shape[1]
    if T == 1 and keys <= window:
        visible = None if mask is None else mask[:, None, None, :]
    else:
        i = torch.arange(keys - T, keys, device=q.device)[:, None]
        j = torch.arange(keys, device=q.device)
        if mask is None:
            visible = (j <= i) & (i - j < window)
        else:
            rank = mask.cumsum(1)
            near = rank[:, keys - T :, None] - rank[:, None, :] < window
            visible = ((j <= i) & near & mask[:, None, :])[:, None]
    if mask is not None and visible is not None:
        # a masked query sees itself, so that no row is empty and nothing becomes NaN
        visible = visible | torch.eye(keys, dtype=torch.bool, device=q.device)[keys - T :]
    if sinks is not None:
        far = sinks.visible(sinks.number[:, keys - T :], window)[:, None]
        near = far.new_ones(1, 1, 1, keys) if visible is None else visible
        near = near.expand(max(len(far), near.shape[0] if near.ndim == 4 else 1), 1, T, keys)
        visible = torch.cat([far.expand(len(near), -1, -1, -1), near], -1)
        k, v = torch.cat([sinks.k, k], 1), torch.cat([sinks.v, v], 1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    o = attend(q, k, v, visible, scale=scale, softcap=softcap).transpose(1, 2)
    if mask is not None:
        o = o.where(mask[:, keys - T :, None, None], o.new_zeros(()))
    return o


def _check(
    q: Tensor, k: Tensor, v: Tensor, window: int, mask: Tensor | None, cu_seqlens: Tensor | None
) -> None:
    B, T, H, K = q.shape
    keys, Hk = k.shape[1:3]
    if k.shape != (B, keys, Hk, K) or v.shape[:3] != (B, keys, Hk) or keys < T:
        raise UsageError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit: "
            "q [B, T, H, K], k [B, P + T, Hk, K], v [B, P + T, Hk, V]"
        )
    if H % Hk:
        raise UsageError(f"{H} query heads are not a multiple of {Hk} key/value heads")
    if window < 1:
        raise UsageError(f"window={window} must be at least 1: it counts the token itself")
    if mask is not None and cu_seqlens is not None:
        raise UsageError("give mask (a padded batch) or cu_seqlens (a packed row), not both")
    if mask is not None and mask.shape != (B, keys):
        raise UsageError(f"mask {tuple(mask.shape)} must cover all keys: [{B}, {keys}]")
    if cu_seqlens is not None and keys != T:
        raise UsageError(f"with cu_seqlens there is no past: {T} queries need {T} keys, not {keys}")
