"""Gated linear attention: per key/value head, S_t = exp(g_t) S_{t-1} + k_t^T v_t, o_t = q_t S_t.

`recurrent` is the definition. `chunk` computes the same from chunks in parallel. Heads are
grouped: `G = H / Hk` query heads read the one state of their key/value head.
Source: Yang et al., "Gated Linear Attention" (arXiv 2312.06635), eq. 3 and section 4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UsageError
from . import backend as backends
from .packed import Packed, check_cu_seqlens

CHUNK = 64
# exp() of half this range, squared, still fits float32 (e^88): the factored form is safe below it.
MAX_FACTORED_RANGE = 80.0


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
    - `g`: [B, T, Hk, K], log decay, at most 0.
    - `initial_state`: [S, Hk, K, V], S = B, or the number of packed sequences; None = zeros.
    - `mask`: [B, T] bool, True = real token; others leave the state alone and give output 0.
    - `cu_seqlens`: [S + 1] boundaries of sequences packed in one row (B = 1); exclusive with mask.
    - `backend`: "auto" or one of `backend.BACKENDS`.

    Returns `o` [B, T, H, V] in v's dtype and the final state [S, Hk, K, V] in float32.
    Raises `UsageError` when shapes do not fit or the backend cannot run here.
    """
    packed = _check(q, k, v, g, initial_state, mask, cu_seqlens)
    chosen = backends.choose(backend, device=q.device, length=q.shape[1])
    dtype = torch.promote_types(q.dtype, torch.float32)
    out_dtype = v.dtype
    q, k, v, g = (x.to(dtype) for x in (q, k, v, g))
    state = None if initial_state is None else initial_state.to(dtype)
    if chosen == "recurrent" and cu_seqlens is None:
        o, state = recurrent(q, k, v, g, initial_state=state, mask=mask)
    elif packed is None:
        o, state = _run(chosen, q, k, v, g, state, None)
    else:
        row = (packed.pack(x) for x in (q, k, v, g))
        o, state = _run(chosen, *row, state, packed.cu_seqlens)
        o = packed.unpack(o)
    return o.to(out_dtype), state


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
    size: int = CHUNK,
) -> tuple[Tensor, Tensor]:
    """The same in chunks of `size` tokens: matrix products inside, a short scan between.

    Shapes as in `gla`. Each sequence fills whole chunks of its own; the missing tokens of its last
    one are zeros with decay 1, so that the state passes through them unchanged.
    """
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    grid = _ChunkGrid(B, T, cu_seqlens, size, q.device)
    # [M, Hk, C, *]: M chunks, heads beside them, time next to last for the matrix products
    q = grid.split(q).unflatten(2, (Hk, H // Hk)).permute(0, 2, 3, 1, 4)  # [M, Hk, G, C, K]
    k, v, g = (grid.split(x).transpose(1, 2) for x in (k, v, g))
    before = g.cumsum(-2)  # log decay from the chunk's start to token i, i included
    total = before[..., -1:, :]

    if not total.numel() or -total.detach().min().item() <= MAX_FACTORED_RANGE:
        inside = _factored(q, k, v, before)
        after = total - before
    else:
        inside, before, after = _halving(q, k, v, g)
    added = (k * after.exp()).transpose(-1, -2) @ v  # [M, Hk, K, V]
    starts, state = _scan(grid, before[..., -1, :].exp(), added, initial_state)
    o = inside + (q * before.exp().unsqueeze(2)) @ starts.unsqueeze(2)
    return grid.join(o.permute(0, 3, 1, 2, 4).flatten(2, 3)), state


def _factored(q: Tensor, k: Tensor, v: Tensor, b: Tensor) -> Tensor:
    """Outputs inside each chunk from one product: exp(b_i - b_j) = exp(b_i - m) exp(m - b_j).

    The anchor m in the middle of the range keeps both exponents within half of it.
    """
    anchor = b[..., -1:, :] / 2
    scores = (q * (b - anchor).exp().unsqueeze(2)) @ (
        (k * (anchor - b).exp()).transpose(-1, -2).unsqueeze(2)
    )
    return scores.tril() @ v.unsqueeze(2)


def _halving(q: Tensor, k: Tensor, v: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same for any gates: blocks of 1, 2, 4, ... tokens are joined in pairs.

    Queries of a pair's second half meet keys of its first half, both measured from the border
    between them, so every exponent is a sum of log decays, at most 0, with nothing to cancel:
    it can underflow, which is the correct limit, and never overflow.
    Returns outputs and the log decays from the chunk's start to i and from i to its end.
    """
    o = (q * k.unsqueeze(2)).sum(-1, keepdim=True) * v.unsqueeze(2)
    before, after = g, torch.zeros_like(g)
    length, half = g.shape[-2], 1
    while half < length:
        pairs = (length // (2 * half), 2, half)
        b0, b1 = before.unflatten(-2, pairs).unbind(-3)
        a0, a1 = after.unflatten(-2, pairs).unbind(-3)
        q1 = q.unflatten(-2, pairs).select(-3, 1)
        k0 = k.unflatten(-2, pairs).select(-3, 0)
        v0 = v.unflatten(-2, pairs).select(-3, 0)
        scores = (q1 * b1.exp().unsqueeze(2)) @ (k0 * a0.exp()).transpose(-1, -2).unsqueeze(2)
        late = scores @ v0.unsqueeze(2)
        o = o + torch.stack([torch.zeros_like(late), late], -3).flatten(-4, -2)
        before = torch.stack([b0, b1 + b0[..., -1:, :]], -3).flatten(-4, -2)
        after = torch.stack([a0 + b1[..., -1:, :], a1], -3).flatten(-4, -2)
        half *= 2
    return o, before, after


def _scan(
    grid: _ChunkGrid, decay: Tensor, added: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State at the start of each chunk [M, Hk, K, V] and after each sequence [S, Hk, K, V]."""
    decay, added = grid.by_sequence(decay, 1.0), grid.by_sequence(added, 0.0)
    if state is None:
        state = added.new_zeros(added.shape[0], *added.shape[2:])
    starts = []
    for n in range(added.shape[1]):
        starts.append(state)
        state = decay[:, n, :, :, None] * state + added[:, n]
    if not starts:
        return added.flatten(0, 1), state
    return grid.chunks(torch.stack(starts, 1)), state


class _ChunkGrid:
    """Where each token sits in the list of M chunks, and each chunk in its sequence."""

    def __init__(
        self, batch: int, length: int, cu_seqlens: Tensor | None, size: int, device: torch.device
    ) -> None:
        self.batch, self.length, self.size = batch, length, size
        if cu_seqlens is None:
            self.per_sequence = -(-length // size)
            self.even = True
            return
        self.even = False
        lengths = cu_seqlens.diff()
        counts = (lengths + size - 1) // size
        first = F.pad(counts.cumsum(0), (1, 0))
        self.sequences, self.total = lengths.numel(), int(first[-1])
        self.per_sequence = int(counts.max()) if lengths.numel() else 0
        # token n of sequence s goes to place first[s] * size + n of the flattened chunks
        shift = torch.repeat_interleave(first[:-1] * size - cu_seqlens[:-1], lengths)
        self.places = (torch.arange(length) + shift).to(device)
        # chunk c of sequence s goes to place s * per_sequence + c of the padded table
        table = torch.arange(self.sequences) * self.per_sequence - first[:-1]
        self.slots = (torch.arange(self.total) + torch.repeat_interleave(table, counts)).to(device)

    def split(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [M, C, ...], zeros where a sequence does not fill its last chunk."""
        if self.even:
            missing = self.per_sequence * self.size - self.length
            if missing:
                x = F.pad(x, (0, 0) * (x.ndim - 2) + (0, missing))
            return x.reshape(self.batch * self.per_sequence, self.size, *x.shape[2:])
        out = x.new_zeros(self.total * self.size, *x.shape[2:]).index_copy(0, self.places, x[0])
        return out.unflatten(0, (self.total, self.size))

    def join(self, x: Tensor) -> Tensor:
        """[M, C, ...] -> [B, T, ...]"""
        if self.even:
            return x.reshape(self.batch, -1, *x.shape[2:])[:, : self.length]
        return x.flatten(0, 1)[self.places].unsqueeze(0)

    def by_sequence(self, x: Tensor, fill: float) -> Tensor:
        """[M, ...] -> [S, chunks of the longest, ...], `fill` after the last chunk of each."""
        if self.even:
            return x.reshape(self.batch, self.per_sequence, *x.shape[1:])
        out = x.new_full((self.sequences * self.per_sequence, *x.shape[1:]), fill)
        return out.index_copy(0, self.slots, x).unflatten(0, (self.sequences, self.per_sequence))

    def chunks(self, x: Tensor) -> Tensor:
        """The inverse of `by_sequence`."""
        x = x.flatten(0, 1)
        return x if self.even else x[self.slots]


def _run(
    chosen: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
) -> tuple[Tensor, Tensor]:
    if chosen == "chunk":
        return chunk(q, k, v, g, initial_state=state, cu_seqlens=cu_seqlens)
    if chosen == "fla":
        from .fla import gla as fla_gla

        return fla_gla(q, k, v, g, initial_state=state, cu_seqlens=cu_seqlens)
    spans = list(zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False))
    outputs, states = [], []
    for n, (start, end) in enumerate(spans):
        first = None if state is None else state[n : n + 1]
        row = (x[:, start:end] for x in (q, k, v, g))
        o, last = recurrent(*row, initial_state=first)
        outputs.append(o)
        states.append(last)
    return torch.cat(outputs, 1), torch.cat(states)


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    initial_state: Tensor | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
) -> Packed | None:
    B, T, H, K = q.shape
    Hk, V = v.shape[2:]
    if k.shape != (B, T, Hk, K) or g.shape != k.shape or v.shape[:2] != (B, T):
        raise UsageError(
            f"q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}, g {tuple(g.shape)} do "
            "not fit: q [B, T, H, K], k and g [B, T, Hk, K], v [B, T, Hk, V]"
        )
    if H % Hk:
        raise UsageError(f"{H} query heads are not a multiple of {Hk} key/value heads")
    if mask is not None and cu_seqlens is not None:
        raise UsageError("give mask (a padded batch) or cu_seqlens (a packed row), not both")
    packed = None
    if cu_seqlens is not None:
        packed = Packed(None, check_cu_seqlens(cu_seqlens, B, T), B, T)
    elif mask is not None:
        if mask.shape != (B, T):
            raise UsageError(f"mask {tuple(mask.shape)} must be [B, T] = [{B}, {T}]")
        packed = Packed.from_mask(mask.bool())
    sequences = B if packed is None else packed.cu_seqlens.numel() - 1
    if initial_state is not None and initial_state.shape != (sequences, Hk, K, V):
        raise UsageError(
            f"initial_state {tuple(initial_state.shape)} must be [sequences, Hk, K, V] = "
            f"[{sequences}, {Hk}, {K}, {V}]"
        )
    return packed
