"""What the chunked forms share: where tokens sit in chunks, decays inside one, states between.

Layout inside: [M, Hk, C, *] for M chunks of C tokens, heads beside the chunks, time next to last
for the matrix products; queries have their group in between, [M, Hk, G, C, *].
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

# exp() of half this range, squared, still fits float32 (e^88): the factored form is safe below it.
MAX_FACTORED_RANGE = 80.0

# What a chunk costs besides its tokens, in tokens, and the smallest: timed, see docs/speed.md.
PER_CHUNK, LEAST_CHUNK = 16, 16

Pairs = tuple[int, int, int]


def fitting(length: int, most: int, cu_seqlens: Tensor | None = None) -> int:
    """Tokens per chunk for rows of `length` tokens, so that little of a chunk is padding.

    `most`, or that halved a few times; where a row holds several sequences always `most`.
    """
    sizes = [most]
    while cu_seqlens is None and sizes[-1] >= 2 * LEAST_CHUNK:
        sizes.append(sizes[-1] // 2)
    return min(sizes, key=lambda size: -(-length // size) * (size + PER_CHUNK))


def factorable(total: Tensor) -> bool:
    """Whether exp(b_i - b_j) may be split in two factors, from the chunks' log decays in all."""
    return not total.numel() or -total.detach().min().item() <= MAX_FACTORED_RANGE


def between(g: Tensor) -> Tensor:
    """[..., C, 1] -> [..., C, C]: log decay from token j to token i, the sum over j < s <= i.

    -inf where j > i, so that exp() gives 0 without overflow. Each sum is made of its own terms: a
    difference of prefix sums would lose a small gate behind an extreme one.
    """
    size = g.shape[-2]
    pairs = torch.ones(size, size, dtype=torch.bool, device=g.device)
    steps = g.expand(*g.shape[:-1], size).masked_fill(pairs.triu(), 0.0)
    return steps.cumsum(-2).masked_fill(pairs.triu(1), -torch.inf)


def halving(
    o: Tensor, g: Tensor, late: Callable[[Pairs, Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs inside each chunk for any gates: blocks of 1, 2, 4, ... tokens are joined in pairs.

    Queries of a pair's second half meet keys of its first half, both measured from the border
    between them, so every exponent is a sum of log decays, at most 0, with nothing to cancel:
    it can underflow, which is the correct limit, and never overflow.

    - `o`: [M, Hk, G, C, *], what each token gives itself.
    - `late`: (pairs, b, a) -> what second halves read in first ones; b is the log decay from the
      border to a token behind it, a from a token before it to the border. See `half`.

    Returns outputs and the log decays from the chunk's start to i and from i to its end.
    """
    before, after = g, torch.zeros_like(g)
    length, width = g.shape[-2], 1
    while width < length:
        pairs = (length // (2 * width), 2, width)
        b0, b1 = before.unflatten(-2, pairs).unbind(-3)
        a0, a1 = after.unflatten(-2, pairs).unbind(-3)
        read = late(pairs, b1, a0)
        o = o + torch.stack([torch.zeros_like(read), read], -3).flatten(-4, -2)
        before = torch.stack([b0, b1 + b0[..., -1:, :]], -3).flatten(-4, -2)
        after = torch.stack([a0 + b1[..., -1:, :], a1], -3).flatten(-4, -2)
        width *= 2
    return o, before, after


def half(x: Tensor, pairs: Pairs, which: int) -> Tensor:
    """[..., C, *] -> [..., pairs, C / 2 / pairs, *]: the first (0) or second (1) half of each."""
    return x.unflatten(-2, pairs).select(-3, which)


def product(x: Tensor, factor: Tensor) -> Tensor:
    """x times factor, laid out densely in x's shape; `*` would keep the strides of a view."""
    if torch.is_grad_enabled():
        return (x * factor).contiguous()
    return torch.mul(x, factor, out=x.new_empty(x.shape))


def scan(
    grid: ChunkGrid, decay: Tensor, added: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """State at the start of each chunk [M, Hk, K, V] and after each sequence [S, Hk, K, V].

    - `decay`: [M, Hk, K or 1] factors over whole chunks; `added`: [M, Hk, K, V].
    """
    decay, added = grid.by_sequence(decay, 1.0), grid.by_sequence(added, 0.0)
    if state is None:
        state = added.new_zeros(added.shape[0], *added.shape[2:])
    starts = []
    for n in range(added.shape[1]):
        starts.append(state)
        state = torch.addcmul(added[:, n], decay[:, n, :, :, None], state)
    if not starts:
        return added.flatten(0, 1), state
    return grid.chunks(torch.stack(starts, 1)), state


class ChunkGrid:
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

    def split_heads(self, x: Tensor) -> Tensor:
        """[B, T, Hk, *] -> [M, Hk, C, *]"""
        return self.split(x).transpose(1, 2)

    def split_queries(self, q: Tensor, heads: int) -> Tensor:
        """[B, T, H, *] -> [M, Hk, G, C, *]"""
        return self.split(q).unflatten(2, (heads, q.shape[2] // heads)).permute(0, 2, 3, 1, 4)

    def join_queries(self, o: Tensor) -> Tensor:
        """The inverse of `split_queries`; a view [B, M / B, C, H, *] where all chunks are full."""
        o = o.permute(0, 3, 1, 2, 4).flatten(2, 3)
        if self.even and self.length == self.per_sequence * self.size:
            return o.unflatten(0, (self.batch, self.per_sequence))
        return self.join(o)

    def chunks(self, x: Tensor) -> Tensor:
        """The inverse of `by_sequence`."""
        x = x.flatten(0, 1)
        return x if self.even else x[self.slots]
