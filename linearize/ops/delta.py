"""The delta rule, gated or not: a key's old value is replaced instead of added to.

    S'  = exp(g_t) S_{t-1}
    S_t = S' + k_t^T beta_t (v_t - k_t S')        o_t = q_t S_t

`recurrent` is the definition. `chunk` solves one triangular system per chunk for what all its
tokens write. Keys are expected to have length 1: then the step never amplifies what is stored.
Source: Yang et al., "Parallelizing Linear Transformers with the Delta Rule" (arXiv 2406.06484),
eq. 2 and section 3; with the gate, "Gated Delta Networks" (arXiv 2412.06464), eq. 10.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .chunks import ChunkGrid, between, fitting
from .forms import Forms, check_heads, run

CHUNK = 32  # the triangular solve grows with its square


def delta(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor | None = None,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """The delta rule with scale 1, computed in float32 (float64 for float64 input).

    - `q`: [B, T, H, K], feature map applied; `H` a multiple of `Hk`.
    - `k`: [B, T, Hk, K] of length 1; `v`: [B, T, Hk, V].
    - `beta`: [B, T, Hk, 1], share of the key's old value that is replaced, in [0, 1].
    - `g`: [B, T, Hk, 1], log decay, at most 0; None = nothing decays.
    - `initial_state`: [S, Hk, K, V]; None = zeros.
    - `mask`, `cu_seqlens`, `backend`: as in `gla`; there is no kernel.

    Returns `o` [B, T, H, V] in v's dtype and the final state [S, Hk, K, V] in float32.
    Raises `UsageError` when shapes do not fit or the backend cannot run here.
    """
    g = torch.zeros_like(beta) if g is None else g
    check_heads(q, k, v, beta=(beta, (1,)), g=(g, (1,)))
    return run(
        Forms(recurrent, chunk),
        q,
        k,
        v,
        beta,
        g,
        shapes=((v.shape[2], q.shape[3], v.shape[3]),),
        initial_state=initial_state,
        mask=mask,
        cu_seqlens=cu_seqlens,
        backend=backend,
    )


def recurrent(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The definition, token by token. Shapes as in `delta`, one sequence per row.

    A masked step has decay 1 and replaces nothing.
    """
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    q = q.view(B, T, Hk, H // Hk, K)
    if mask is not None:
        real = mask[:, :, None, None]
        beta, g = beta.where(real, beta.new_zeros(())), g.where(real, g.new_zeros(()))
        q = q.where(real[..., None], q.new_zeros(()))
    state = q.new_zeros(B, Hk, K, V) if initial_state is None else initial_state
    decay = g.exp()
    outputs = []
    for t in range(T):
        state = decay[:, t, :, :, None] * state
        held = (k[:, t, :, None, :] @ state).squeeze(-2)  # [B, Hk, V]
        write = beta[:, t] * (v[:, t] - held)
        state = state + k[:, t, :, :, None] * write[:, :, None, :]
        outputs.append(q[:, t] @ state)  # [B, Hk, G, V]
    o = torch.stack(outputs, 1) if T else q.new_zeros(B, 0, Hk, H // Hk, V)
    return o.reshape(B, T, H, V), state


def chunk(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The same in chunks of `size` tokens, None = what fits. Shapes as in `delta`.

    What a chunk's tokens write is U - W S, with S the state at its start: U and W come from the
    triangular system, so only S has to wait for the chunk before.
    """
    V = v.shape[-1]
    size = size or fitting(q.shape[1], CHUNK, cu_seqlens)
    grid = ChunkGrid(*q.shape[:2], cu_seqlens, size, q.device)
    q = grid.split_queries(q, v.shape[2])
    k, v, beta, g = (grid.split_heads(x) for x in (k, v, beta, g))
    log_decay = between(g)
    decay, before, after = log_decay.exp(), g.cumsum(-2).exp(), log_decay[..., -1, :, None].exp()
    overlap = beta * (k @ k.transpose(-1, -2)) * decay
    wanted = torch.cat([beta * v, beta * k * before], -1)
    solved = torch.linalg.solve_triangular(overlap, wanted, upper=False, unitriangular=True)
    u, w = solved[..., :V], solved[..., V:]
    starts, state = _scan(grid, before[..., -1, :], k * after, u, w, initial_state)
    inside = (q @ k.transpose(-1, -2).unsqueeze(2)) * decay.unsqueeze(2)
    o = inside @ (u - w @ starts).unsqueeze(2)
    o = o + (q * before.unsqueeze(2)) @ starts.unsqueeze(2)
    return grid.join_queries(o), state


def _scan(
    grid: ChunkGrid, decay: Tensor, k: Tensor, u: Tensor, w: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State at the start of each chunk [M, Hk, K, V] and after each sequence [S, Hk, K, V].

    - `k`: [M, Hk, C, K], decayed to the chunk's end; `u`, `w`: as in `chunk`.
    """
    decay = grid.by_sequence(decay, 1.0)
    k, u, w = (grid.by_sequence(x, 0.0) for x in (k, u, w))
    if state is None:
        state = u.new_zeros(u.shape[0], u.shape[2], k.shape[-1], u.shape[-1])
    starts = []
    for n in range(u.shape[1]):
        starts.append(state)
        write = u[:, n] - w[:, n] @ state
        state = decay[:, n, :, :, None] * state + k[:, n].transpose(-1, -2) @ write
    if not starts:
        return u.new_zeros(0, *state.shape[1:]), state
    return grid.chunks(torch.stack(starts, 1)), state
