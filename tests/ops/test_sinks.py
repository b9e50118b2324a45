"""Windows with sinks against one query at a time; pieces, padding and packing change nothing."""

from __future__ import annotations

from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linearize.ops import window_attention
from linearize.ops.sinks import Sinks, first_tokens, numbers


def inputs(B: int, T: int) -> list[Tensor]:
    make = torch.Generator().manual_seed(T)
    return [
        torch.randn(B, T, *size, generator=make, dtype=torch.float64, requires_grad=True)
        for size in ((4, 8), (2, 8), (2, 6))
    ]


def attended(
    q: Tensor, k: Tensor, v: Tensor, *, n: int, window: int, softcap: float | None = None, **rows
) -> Tensor:
    first = (first_tokens(x, n, **rows) for x in (k, v))
    sinks = Sinks(*first, numbers(k.shape[1], **rows))
    return window_attention(q, k, v, window=window, sinks=sinks, softcap=softcap, **rows)


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, n: int, window: int, softcap: float | None = None
) -> Tensor:
    """One sequence without padding: token t sees the first n and the last `window` once each."""
    rows = []
    for t in range(q.shape[1]):
        seen = sorted({*range(min(n, t + 1)), *range(max(0, t - window + 1), t + 1)})
        scores = torch.einsum("bhk,bshk->bhs", q[:, t], k[:, seen].repeat_interleave(2, 2))
        scores = scores * q.shape[3] ** -0.5
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        rows.append(
            torch.einsum("bhs,bshv->bhv", scores.softmax(-1), v[:, seen].repeat_interleave(2, 2))
        )
    return torch.stack(rows, 1)


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-11)


@settings(deadline=None, max_examples=25)
@given(
    B=st.integers(1, 2),
    T=st.integers(1, 70),
    n=st.integers(1, 9),
    window=st.sampled_from([1, 2, 5, 16, 80]),
    softcap=st.sampled_from([None, 0.7]),
)
def test_outputs_and_gradients(B: int, T: int, n: int, window: int, softcap: float | None) -> None:
    found = []
    for form in (attended, by_hand):
        given = inputs(B, T)
        o = form(*given, n=n, window=window, softcap=softcap)
        found.append((o.detach(), *torch.autograd.grad((o**2).sum(), given)))
    for a, b in zip(*found, strict=True):
        close(a, b)


@settings(deadline=None, max_examples=25)
@given(data=st.data(), T=st.integers(1, 50), n=st.integers(1, 6), window=st.integers(1, 12))
def test_padding_takes_no_place(data: st.DataObject, T: int, n: int, window: int) -> None:
    row = st.lists(st.booleans(), min_size=T, max_size=T)
    mask = torch.tensor([data.draw(row), data.draw(row)])
    q, k, v = inputs(2, T)
    o = attended(q, k, v, n=n, window=window, mask=mask)
    assert not o[~mask].any()
    for b, real in enumerate(mask):
        if real.any():
            alone = by_hand(*(x[b : b + 1, real] for x in (q, k, v)), n=n, window=window)
            close(o[b, real], alone[0])


@settings(deadline=None, max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(sum),
    n=st.integers(1, 6),
    window=st.sampled_from([2, 7, 16]),
)
def test_packed_documents_have_sinks_of_their_own(lengths: list[int], n: int, window: int) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = inputs(1, int(at[-1]))
    o = attended(q, k, v, n=n, window=window, cu_seqlens=at)
    for begin, end in pairwise(at.tolist()):
        if end > begin:
            row = (x[:, begin:end] for x in (q, k, v))
            close(o[:, begin:end], by_hand(*row, n=n, window=window))
