"""Gated slot attention: a memory of M slots, read by softmax; two states per key/value head.

    s_t  = 1 - exp(g_t)                                  what token t writes to each slot, [M]
    Ks_t = Ks_{t-1} * exp(g_t)[None, :] + k_t^T s_t      slot keys [K, M]
    Vs_t = exp(g_t)[:, None] * Vs_{t-1} + s_t^T v_t      slot values [M, V]
    o_t  = softmax_M(q_t Ks_t) Vs_t

`recurrent` is the definition. `chunk` is two passes over the same decays: scores against the slot
keys, whose decay is on their second axis, then `gla` with the slots as channels.
Source: Zhang et al., "Gated Slot Attention" (arXiv 2409.07146), eq. 6 to 8; scale 1.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunks import ChunkGrid, Pairs, factorable, fitting, half, halving, scan
from .forms import Forms, check_heads, run
from .gla import CHUNK
from .gla import chunk as gla_chunk

States = tuple[Tensor, Tensor]


def gsa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: States | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, States]:
    """Gated slot attention with scale 1, computed in float32 (float64 for float64 input).

    - `q`: [B, T, H, K], `k`: [B, T, Hk, K], `v`: [B, T, Hk, V], without feature map.
    - `g`: [B, T, Hk, M], log decay of each slot, at most 0; it also says what is written.
    - `initial_state`: slot keys [S, Hk, K, M] and slot values [S, Hk, M, V]; None = zeros.
    - `mask`, `cu_seqlens`, `backend`: as in `gla`; there is no kernel.

    Returns `o` [B, T, H, V] in v's dtype and the final states in float32.
    Raises `UsageError` when shapes do not fit or the backend cannot run here.
    """
    (K, (Hk, V), M) = q.shape[-1], v.shape[2:], g.shape[-1]
    check_heads(q, k, v, g=(g, (M,)))
    return run(
        Forms(recurrent, chunk),
        q,
        k,
        v,
        g,
        shapes=((Hk, K, M), (Hk, M, V)),
        initial_state=initial_state,
        mask=mask,
        cu_seqlens=cu_seqlens,
        backend=backend,
    )


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: States | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, States]:
    """The definition, token by token. Shapes as in `gsa`, one sequence per row.

    A masked step has decay 1 and so writes nothing.
    """
    B, T, H, K = q.shape
    (Hk, V), M = v.shape[2:], g.shape[-1]
    q = q.view(B, T, Hk, H // Hk, K)
    if mask is not None:
        g = g.where(mask[:, :, None, None], g.new_zeros(()))
    keys, values = initial_state or (q.new_zeros(B, Hk, K, M), q.new_zeros(B, Hk, M, V))
    decay, write = g.exp(), -torch.expm1(g)
    outputs = []
    for t in range(T):
        keys = decay[:, t, :, None, :] * keys + k[:, t, :, :, None] * write[:, t, :, None, :]
        values = decay[:, t, :, :, None] * values + write[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append((q[:, t] @ keys).softmax(-1) @ values)  # [B, Hk, G, V]
    o = torch.stack(outputs, 1) if T else q.new_zeros(B, 0, Hk, H // Hk, V)
    if mask is not None:
        o = o.where(mask[:, :, None, None, None], o.new_zeros(()))
    return o.reshape(B, T, H, V), (keys, values)


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: States | None = None,
    cu_seqlens: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, States]:
    """The same in chunks of `size` tokens, None = what fits. Shapes as in `gsa`."""
    size = size or fitting(q.shape[1], CHUNK, cu_seqlens)
    keys, values = initial_state or (None, None)
    write = -torch.expm1(g)
    scores, keys = _scores(q, k, write, g, keys, cu_seqlens, size)
    o, values = gla_chunk(
        scores.softmax(-1), write, v, g, initial_state=values, cu_seqlens=cu_seqlens, size=size
    )
    return o, (keys, values)


def _scores(
    q: Tensor,
    k: Tensor,
    write: Tensor,
    g: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    size: int,
) -> tuple[Tensor, Tensor]:
    """q_t Ks_t [B, T, H, M] and the last slot keys [S, Hk, K, M].

    The slot keys turned round are the state of `gla` with `write` as key and k as value; only
    they are read along their other axis.
    """
    grid, rows = ChunkGrid(*q.shape[:2], cu_seqlens, size, q.device), q.shape[:3]
    q = grid.split_queries(q, k.shape[2])
    k, write, g = (grid.split_heads(x) for x in (k, write, g))
    before = g.cumsum(-2)
    total = before[..., -1:, :]
    if factorable(total):
        inside, after = _factored(q, k, write, before), total - before
    else:
        inside, before, after = _halving(q, k, write, g)
    added = (write * after.exp()).transpose(-1, -2) @ k  # [M, Hk, slots, K]
    turned = None if state is None else state.transpose(-1, -2)
    starts, last = scan(grid, before[..., -1, :].exp(), added, turned)
    scores = inside + (q @ starts.transpose(-1, -2).unsqueeze(2)) * before.exp().unsqueeze(2)
    return grid.join_queries(scores).reshape(*rows, g.shape[-1]), last.transpose(-1, -2)


def _factored(q: Tensor, k: Tensor, write: Tensor, b: Tensor) -> Tensor:
    anchor = b[..., -1:, :] / 2
    products = (q @ k.transpose(-1, -2).unsqueeze(2)).tril()
    read = products @ (write * (anchor - b).exp()).unsqueeze(2)
    return read * (b - anchor).exp().unsqueeze(2)


def _halving(q: Tensor, k: Tensor, write: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def late(pairs: Pairs, b: Tensor, a: Tensor) -> Tensor:
        products = half(q, pairs, 1) @ half(k, pairs, 0).transpose(-1, -2).unsqueeze(2)
        read = products @ (half(write, pairs, 0) * a.exp()).unsqueeze(2)
        return read * b.exp().unsqueeze(2)

    own = (q * k.unsqueeze(2)).sum(-1, keepdim=True) * write.unsqueeze(2)
    return halving(own, g, late)
