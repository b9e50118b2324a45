"""Gated linear attention: per key/value head, S_t = exp(g_t) S_{t-1} + k_t^T v_t, o_t = q_t S_t.

`recurrent` is the definition. `chunk` computes the same from chunks in parallel. Heads are
grouped: `G = H / Hk` query heads read the one state of their key/value head.
Source: Yang et al., "Gated Linear Attention" (arXiv 2312.06635), eq. 3 and section 4; with one
decay per head, Dao and Gu, "Transformers are SSMs" (arXiv 2405.21060), section 6.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunks import ChunkGrid, Pairs, between, factorable, fitting, half, halving, product, scan
from .forms import Forms, check_heads, run
from .native import gla as native

CHUNK = 64


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Gated linear attention with scale 1, computed in float32 (float64 for float64 input).

    - `q`: [B, T, H, K], feature map applied; `H` a multiple of `Hk`.
    - `k`: [B, T, Hk, K], feature map applied; `v`: [B, T, Hk, V].
    - `g`: [B, T, Hk, K], or [B, T, Hk, 1] for one decay per head: log decay, at most 0.
    - `initial_state`: [S, Hk, K, V], S = B, or the number of packed sequences; None = zeros.
    - `mask`: [B, T] bool, True = real token; others leave the state alone and give output 0.
    - `cu_seqlens`: [S + 1] boundaries of sequences packed in one row (B = 1); exclusive with mask.
    - `backend`: "auto" or one of `backend.BACKENDS`.

    Returns `o` [B, T, H, V] in v's dtype and the final state [S, Hk, K, V] in float32.
    Raises `UsageError` when shapes do not fit or the backend cannot run here.
    """
    K = q.shape[-1]
    check_heads(q, k, v, g=(g, (K, 1)))
    return run(
        Forms(recurrent, chunk, _fla, native.gla),
        q,
        k,
        v,
        g,
        shapes=((v.shape[2], K, v.shape[3]),),
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
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token. Shapes as in `gla`, one sequence per row.

    A masked step has decay 1 and adds nothing.
    """
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    q = q.view(B, T, Hk, H // Hk, K)
    if mask is not None:
        real = mask[:, :, None, None]
        v, g = v.where(real, v.new_zeros(())), g.where(real, g.new_zeros(()))
        q = q.where(real[..., None], q.new_zeros(()))
    state = q.new_zeros(B, Hk, K, V) if initial_state is None else initial_state
    decay = g.exp()
    outputs = []
    for t in range(T):
        state = decay[:, t, :, :, None] * state + k[:, t, :, :, None] * v[:, t, :, None, :]
        outputs.append(q[:, t] @ state)  # [B, Hk, G, V]
    o = torch.stack(outputs, 1) if T else q.new_zeros(B, 0, Hk, H // Hk, V)
    return o.reshape(B, T, H, V), state


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in chunks of `size` tokens: matrix products inside, a short scan between.

    Shapes as in `gla`; `size` None = what fits. Each sequence fills whole chunks of its own; the
    missing tokens of its last one are zeros with decay 1, so that the state passes through them
    unchanged.
    """
    size = size or fitting(q.shape[1], CHUNK, cu_seqlens)
    grid = ChunkGrid(*q.shape[:2], cu_seqlens, size, q.device)
    q = grid.split_queries(q, v.shape[2])
    k, v, g = (grid.split_heads(x) for x in (k, v, g))
    if g.shape[-1] > 1 and factorable(g.sum(-2)):
        o, state = _factored(grid, q, k, v, g, initial_state)
        return grid.join_queries(o), state
    before = g.cumsum(-2)  # log decay from the chunk's start to token i, i included
    if g.shape[-1] == 1:
        inside, after = _one_decay(q, k, v, g)
    else:
        inside, before, after = _halving(q, k, v, g)
    added = (k * after.exp()).transpose(-1, -2) @ v  # [M, Hk, K, V]
    starts, state = scan(grid, before[..., -1, :].exp(), added, initial_state)
    o = inside + (q * before.exp().unsqueeze(2)) @ starts.unsqueeze(2)
    return grid.join_queries(o), state


def _one_decay(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs inside each chunk for one decay per head, which scales the [C, C] scores.

    Also the log decay from each token to the chunk's end.
    """
    decay = between(g)
    scores = (q @ k.transpose(-1, -2).unsqueeze(2)) * decay.exp().unsqueeze(2)
    return scores @ v.unsqueeze(2), decay[..., -1, :, None]


def _factored(
    grid: ChunkGrid, q: Tensor, k: Tensor, v: Tensor, g: Tensor, initial_state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Outputs [M, Hk, G, C, V] and the last state, each token's decay in one factor of its own.

    With b the log decay from the chunk's start, exp(b_i - b_j) = exp(b_i - m) exp(m - b_j), and
    the anchor m = b_C / 2 keeps both exponents within half of the chunk's range. The same factors
    serve between chunks: what they lack there, exp(m), scales states and not tokens. Query heads of
    a group are further rows of one product.
    """
    M, Hk, G, C, K = q.shape
    # b - m is one product: of steps up to i half is added, of those behind i half is taken away
    halves = g.new_ones(C, C).tril_().sub_(0.5)
    up = torch.matmul(halves, g).exp_()
    q = product(q, up.unsqueeze(2)).view(M * Hk, G * C, K)
    k = product(k, up.reciprocal()).view(M * Hk, C, K)
    v = v.reshape(M * Hk, C, v.shape[-1])
    middle = up[..., -1, :].unsqueeze(-1)  # exp(m), [M, Hk, K, 1]
    added = torch.bmm(k.transpose(1, 2), v).unflatten(0, (M, Hk)) * middle
    starts, state = scan(grid, middle.squeeze(-1).square(), added, initial_state)
    scores = torch.bmm(q, k.transpose(1, 2))
    scores.view(M * Hk, G, C, C).tril_()
    read = torch.bmm(q, (starts * middle).flatten(0, 1))
    read.baddbmm_(scores, v.to(read.dtype))  # autocast leaves a narrower type behind
    return read.view(M, Hk, G, C, v.shape[-1]), state


def _halving(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    def late(pairs: Pairs, b: Tensor, a: Tensor) -> Tensor:
        keys = (half(k, pairs, 0) * a.exp()).transpose(-1, -2).unsqueeze(2)
        scores = (half(q, pairs, 1) * b.exp().unsqueeze(2)) @ keys
        return scores @ half(v, pairs, 0).unsqueeze(2)

    own = (q * k.unsqueeze(2)).sum(-1, keepdim=True) * v.unsqueeze(2)
    return halving(own, g, late)


def _fla(*tensors: Tensor, **how: Tensor | None) -> tuple[Tensor, Tensor]:
    from .fla import gla as kernel

    return kernel(*tensors, **how)
