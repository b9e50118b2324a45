"""Sliding-window softmax attention: token t sees itself and the `window - 1` real tokens before it.

`dense` is the definition, one score per pair of tokens. `blocked` cuts the row into blocks, each of
which sees itself and the window before it: linear in the length, exact.
Source: Beltagy et al., "Longformer" (arXiv 2004.05150), section 3.1.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from . import segments
from .backend import allows
from .chunks import ChunkGrid
from .native import call
from .native import window as native
from .packed import Packed, check_cu_seqlens, document_ids, mostly_real
from .sinks import Sinks

# Queries of a block: half a window, since every one of them meets the whole block's keys; the
# products of less than 16 are too small, the scores of more than 128 too large (docs/speed.md).
LEAST_BLOCK, MAX_BLOCK = 16, 128
EXACT = (torch.float32, torch.float64)  # what products on the CPU keep the precision of
ALIGNED = 16  # scores of a query come in multiples of it: whole vectors for the softmax


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
    if mask is None and cu_seqlens is None and _in_c(q, k, v, softcap, sinks):
        return native.window_attention(q, k, v, window=window, scale=how["scale"])
    if keys > T:  # queries for the past too: at most a window of them, and one path for all lengths
        q = F.pad(q, (0, 0, 0, 0, keys - T, 0))
    if mask is not None and sinks is None and _ends_padded(mask) and mostly_real(mask):
        o = blocked(q, k, v, **how)
        o = o.where(mask[:, :, None, None], o.new_zeros(()))
    elif mask is not None:
        packed = Packed.from_mask(mask)
        if sinks is not None:
            sinks = Sinks(sinks.k, sinks.v, packed.pack(sinks.number))
        row = (packed.pack(x) for x in (q, k, v))
        o = packed.unpack(_documents(*row, packed.cu_seqlens, sinks, **how))
    elif cu_seqlens is not None:
        o = _documents(q, k, v, check_cu_seqlens(cu_seqlens, *q.shape[:2]), sinks, **how)
    else:
        o = blocked(q, k, v, sinks=sinks, **how)
    return o[:, keys - T :]


def _in_c(q: Tensor, k: Tensor, v: Tensor, softcap: float | None, sinks: Sinks | None) -> bool:
    """Whether the C form computes it; see `ops.native`."""
    return softcap is None and sinks is None and allows("native") and call.takes(q, k, v)


def block_size(window: int) -> int:
    """Queries per block for a window."""
    return min(max(window // 2, LEAST_BLOCK), MAX_BLOCK)


def _ends_padded(mask: Tensor) -> bool:
    """Whether padding stands at the rows' ends alone, where no real token sees it."""
    return bool((mask[:, 1:] <= mask[:, :-1]).all())


def _documents(
    q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, sinks: Sinks | None, **how: Any
) -> Tensor:
    """Sequences packed in one row; with sinks, which differ, each fills blocks of its own."""
    documents = document_ids(cu_seqlens, q.device)
    if sinks is None or not documents.numel():
        return blocked(q, k, v, documents=documents, **how)
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


def blocked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    scale: float,
    softcap: float | None = None,
    documents: Tensor | None = None,
    sinks: Sinks | None = None,
) -> Tensor:
    """Queries in blocks, each over its own block and the window before it; on the CPU in segments.

    `q`, `k`, `v` [B, T, H or Hk, *] of equal length; `documents` [T] keeps tokens of one row apart
    (B = 1). `sinks` are of the B rows, or of the blocks where there are documents.
    """
    B, T, H = q.shape[:3]
    if not T:
        return q.new_zeros(B, 0, H, v.shape[3])
    if _in_c(q, k, v, softcap, sinks):
        return native.window_attention(q, k, v, window=window, scale=scale, documents=documents)
    block = block_size(window)
    past = -(-(window - 1) // ALIGNED) * ALIGNED  # keys before a block that come with it
    pay = segments.pay(q.device)
    size = segments.tokens(B, block) if pay else T
    tensors = [q, k, v]
    if sinks is not None:
        tensors += [x if documents is None else x[None] for x in (sinks.k, sinks.v)]

    def cut(at: slice) -> segments.Piece:
        seen = slice(max(at.start - past, 0), at.stop)
        far = slice(at.start // block, -(-at.stop // block))
        if documents is None:
            far = slice(None)
        return segments.Piece(at, (at, seen, seen, far, far)[: len(tensors)])

    spelt_out = softcap is None and pay and q.dtype in EXACT
    how = {"block": block, "scale": scale, "softcap": softcap, "spelt_out": spelt_out}

    def look(at: slice) -> Tensor:
        return _visible(at, block, past, window, documents, sinks, q.device)

    plain = spelt_out and documents is None and sinks is None
    band = look(slice(past, past + block)) if plain else None  # the same for every block

    def step(piece: segments.Piece, cut: tuple[Tensor, ...], _: tuple) -> tuple[Tensor, tuple]:
        if plain:
            return _blocks(*cut, visible=band, lacking=max(past - piece.tokens.start, 0), **how), ()
        return _blocks(*cut, visible=look(piece.tokens), **how), ()

    parts = [cut(slice(n, min(n + size, T))) for n in range(0, T, size)]
    shape = (H, v.shape[3])
    if len(parts) == 1 and not (spelt_out and torch.is_grad_enabled()):  # scores are not kept
        return step(parts[0], tuple(tensors), ())[0].reshape(B, T, *shape)
    return segments.run(step, parts, tuple(tensors), (), shape)[0]


def _visible(
    at: slice,
    block: int,
    past: int,
    window: int,
    documents: Tensor | None,
    sinks: Sinks | None,
    device: torch.device,
) -> Tensor:
    """[1 or B, 1 or n, block, sinks + past + block]: what each query of the n blocks sees."""
    count = -(-(at.stop - at.start) // block)
    ends = 0, count * block - (at.stop - at.start)
    i = torch.arange(block, device=device)[:, None]
    j = torch.arange(past + block, device=device)
    i = i + past  # key j is token j - past of the block
    visible = ((j > i - window) & (j <= i))[None]
    if at.start < past:
        start = at.start + torch.arange(count, device=device)[:, None, None] * block
        visible = visible & (start + j >= past)  # before the row's start
    if documents is not None:
        first = max(at.start - past, 0)
        own = F.pad(documents[at], ends, value=-1).view(count, block, 1)
        seen = F.pad(documents[first : at.stop], (past - at.start + first, ends[1]), value=-1)
        visible = visible & (own == seen.unfold(0, past + block, block)[:, None, :])
    visible = visible[None]
    if sinks is not None:
        far = sinks.visible(F.pad(sinks.number[:, at], ends).view(-1, count, block), window)
        visible = torch.cat([far, visible.expand(len(far), count, -1, -1)], -1)
    return visible


def _blocks(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *sinks: Tensor,
    visible: Tensor,
    block: int,
    scale: float,
    softcap: float | None,
    spelt_out: bool,
    lacking: int = 0,
) -> Tensor:
    """q [B, T, H, K] over k and v that may begin earlier, as far as the first block sees.

    `sinks`: keys and values, [B, n, Hk, *] or [1, blocks, n, Hk, *]. The query heads of a group
    are stacked as further rows over their shared keys. `spelt_out`, `lacking`: see `_products`.
    Outputs are [B, T, H, V], or a view with tokens and heads split further.
    """
    B, T, H, K = q.shape
    Hk, G, count = k.shape[2], H // k.shape[2], -(-T // block)
    missing, far = count * block - T, sinks[0].shape[-3] if sinks else 0
    span = visible.shape[-1] - far
    front = span - block - (k.shape[1] - T)
    if missing:
        q = F.pad(q, (0, 0, 0, 0, 0, missing))
    if missing or front:
        k, v = (F.pad(x, (0, 0, 0, 0, front, missing)) for x in (k, v))
    # [B, Hk, n, G * block, K] against [B, Hk, n, span, K]; neighbours share what both see
    q = q.reshape(B, count, block, Hk, G, K).permute(0, 3, 1, 4, 2, 5).flatten(3, 4)
    k, v = (x.transpose(1, 2).contiguous() for x in (k, v))
    k, v = (x.unfold(2, span, block).transpose(-1, -2) for x in (k, v))
    if sinks:
        there = [x if x.ndim == 5 else x[:, None].expand(-1, count, -1, -1, -1) for x in sinks]
        there = (x.permute(0, 3, 1, 2, 4) for x in there)
        k, v = (torch.cat([s, x], 3) for s, x in zip(there, (k, v), strict=True))
    visible = visible.repeat(1, 1, G, 1)
    if spelt_out:
        o = _products(q, k, v, visible, scale=scale, block=block, lacking=lacking)
    else:
        if visible.shape[:2] != (1, 1):
            visible = visible.expand(B, count, -1, -1).flatten(0, 1)[:, None]
        q, k, v = (x.transpose(1, 2).flatten(0, 1) for x in (q, k, v))
        o = attend(q, k, v, visible, scale=scale, softcap=softcap).unflatten(0, (B, count))
        o = o.transpose(1, 2)
    o = o.unflatten(3, (G, block)).permute(0, 2, 4, 1, 3, 5)
    return o.reshape(B, count * block, H, v.shape[-1])[:, :T] if missing else o


def _products(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    visible: Tensor,
    *,
    scale: float,
    block: int,
    lacking: int,
) -> Tensor:
    """`attend` of q [B, Hk, n, R, K] over k and v [B, Hk, n, keys, *], `visible` [B, n, R, keys].

    Spelt out for the CPU, where the fused kernel goes in steps too small for so few keys.
    `lacking`: keys of the first block that stand before the row's start; each further block lacks
    `block` fewer.
    """
    # the least number, not -inf: rows of padding see nothing, and must not become NaN
    least = torch.finfo(q.dtype).min
    bias = torch.zeros(visible.shape, dtype=q.dtype).masked_fill_(~visible, least)
    B, Hk, n, R = q.shape[:4]
    how = {"scale": scale, "block": block, "blocks": n, "lacking": lacking}
    if B * Hk > n:  # one product over copies of the keys is faster than many over views
        q, k, v = (x.flatten(0, 2) for x in (q, k, v))
        bias = bias[:, None].expand(B, Hk, n, -1, -1).reshape(-1, *bias.shape[-2:])
        return _attend(q, k, v, bias, **how).view(B, Hk, n, R, -1)
    each = [
        (q[b, h], k[b, h], v[b, h], bias[min(b, len(bias) - 1)])
        for b in range(B)
        for h in range(Hk)
    ]
    if torch.is_grad_enabled():
        return torch.stack([_attend(*x, **how) for x in each]).unflatten(0, (B, Hk))
    o = q.new_empty(B * Hk, n, R, v.shape[-1])
    for x, out in zip(each, o, strict=True):
        _attend(*x, **how, out=out)
    return o.unflatten(0, (B, Hk))


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias: Tensor,
    *,
    scale: float,
    lacking: int,
    block: int,
    blocks: int,
    out: Tensor | None = None,
) -> Tensor:
    scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=scale)
    for n in range(min(-(-lacking // block), blocks)):
        before = scores.unflatten(0, (-1, blocks))[:, n, :, : lacking - n * block]
        before.fill_(torch.finfo(q.dtype).min)
    if torch.is_grad_enabled():
        return torch.bmm(scores.softmax(-1), v)
    return torch.bmm(torch.softmax(scores, -1, out=scores), v, out=out)


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
