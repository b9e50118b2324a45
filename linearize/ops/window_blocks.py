"""The torch form of sliding-window attention: queries in blocks, linear in the length, exact.

Each block sees itself and the window before it.
Source: Beltagy et al., "Longformer" (arXiv 2004.05150), section 3.1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from . import segments
from .sinks import Sinks
from .softmax import attend

# Queries of a block: half a window, since every one of them meets the whole block's keys; the
# products of less than 16 are too small, the scores of more than 128 too large (docs/speed.md).
LEAST_BLOCK, MAX_BLOCK = 16, 128
EXACT = (torch.float32, torch.float64)  # what products on the CPU keep the precision of
ALIGNED = 16  # scores of a query come in multiples of it: whole vectors for the softmax


def block_size(window: int) -> int:
    """Queries per block for a window."""
    return min(max(window // 2, LEAST_BLOCK), MAX_BLOCK)


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

    device = q.device  # the steps outlive this call, and must not hold q

    def look(at: slice) -> Tensor:
        return _visible(at, block, past, window, documents, sinks, device)

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
