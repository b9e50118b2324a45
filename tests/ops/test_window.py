"""Blocked window attention against the dense definition, and that against plain loops."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import window_attention
from linearize.ops.window import dense
from linearize.ops.window_blocks import blocked


def inputs(B: int, T: int, *, P: int = 0, heads: int = 4, groups: int = 2) -> list[Tensor]:
    make = torch.Generator().manual_seed(T)
    sizes = ((T, heads, 8), (P + T, heads // groups, 8), (P + T, heads // groups, 6))
    return [torch.randn(B, *size, generator=make, dtype=torch.float64) for size in sizes]


def by_hand(
    q: Tensor, k: Tensor, v: Tensor, window: int, real: list[bool], softcap: float | None
) -> Tensor:
    """One row, one query and head at a time, over the last `window` real tokens."""
    T, H, groups = q.shape[1], q.shape[2], q.shape[2] // k.shape[2]
    o = torch.zeros(1, T, H, v.shape[3], dtype=q.dtype)
    past = k.shape[1] - T
    for t in range(T):
        if not real[past + t]:
            continue
        seen = [j for j in range(past + t + 1) if real[j]][-window:]
        for h in range(H):
            scores = k[0, seen, h // groups] @ q[0, t, h] * q.shape[3] ** -0.5
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            o[0, t, h] = scores.softmax(0) @ v[0, seen, h // groups]
    return o


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    data=st.data(),
    T=st.integers(1, 40),
    P=st.integers(0, 12),
    window=st.integers(1, 20),
    softcap=st.sampled_from([None, 0.7]),
)
def test_definition_is_what_it_says(
    data: st.DataObject, T: int, P: int, window: int, softcap: float | None
) -> None:
    real = data.draw(st.lists(st.booleans(), min_size=P + T, max_size=P + T))
    q, k, v = inputs(1, T, P=P)
    expected = by_hand(q, k, v, window, real, softcap)
    mask = torch.tensor([real])
    close(dense(q, k, v, window=window, mask=mask, scale=8**-0.5, softcap=softcap), expected)
    close(window_attention(q, k, v, window=window, mask=mask, softcap=softcap), expected)


@settings(deadline=None, max_examples=40)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 400),
    window=st.sampled_from([1, 2, 3, 16, 63, 64, 65, 200, 500]),
    groups=st.sampled_from([1, 2, 4]),
    softcap=st.sampled_from([None, 0.7]),
)
def test_blocks_equal_the_definition(
    B: int, T: int, window: int, groups: int, softcap: float | None
) -> None:
    found = []
    for form in (dense, blocked):
        q, k, v = (x.requires_grad_() for x in inputs(B, T, groups=groups))
        o = form(q, k, v, window=window, scale=0.3, softcap=softcap)
        (o**2).sum().backward()
        found.append((o.detach(), q.grad, k.grad, v.grad))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(sum))
def test_packed_sequences_equal_separate_ones(lengths: list[int]) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    q, k, v = inputs(1, int(at[-1]))
    o = window_attention(q, k, v, window=16, cu_seqlens=at)
    for begin, end in zip(at.tolist(), at.tolist()[1:], strict=False):
        row = [x[:, begin:end] for x in (q, k, v)]
        close(o[:, begin:end], dense(*row, window=16, scale=8**-0.5))


def test_long_rows_with_a_past_take_the_same_path() -> None:
    q, k, v = inputs(2, 300, P=63)
    close(window_attention(q, k, v, window=64), dense(q, k, v, window=64, scale=8**-0.5))


@pytest.mark.parametrize("P", [0, 15])
def test_padding_at_the_end_equals_the_definition(P: int) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(2, 100, P=P))
    mask = torch.ones(2, P + 100, dtype=torch.bool)
    mask[0, -10:] = mask[1, -3:] = False
    found = []
    for form in (window_attention, partial(dense, scale=8**-0.5)):
        o = form(q, k, v, window=16, mask=mask)
        found.append((o, *torch.autograd.grad((o * o).sum(), (q, k, v))))
    for one, other in zip(*found, strict=True):
        close(one, other)


@pytest.mark.parametrize("softcap", [None, 0.7])
def test_rows_of_padding_are_zero_not_nan(softcap: float | None) -> None:
    q, k, v = (x.requires_grad_() for x in inputs(2, 100))
    mask = torch.zeros(2, 100, dtype=torch.bool)
    mask[0, 40:60] = True
    for length in (100, 5):  # blocked and dense
        part = [x[:, :length] for x in (q, k, v)]
        o = window_attention(*part, window=16, mask=mask[:, :length], softcap=softcap)
        assert torch.isfinite(o).all()
        assert all(torch.isfinite(x).all() for x in torch.autograd.grad(o.sum(), (q, k, v)))
        assert not o[~mask[:, :length]].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"window": 0}, "window=0 must be at least 1"),
        ({"mask": torch.ones(1, 9, dtype=torch.bool)}, r"must cover all keys: \[1, 10\]"),
        ({"cu_seqlens": torch.tensor([0, 11])}, "rise from 0"),
    ],
)
def test_misuse_is_named(change: dict, message: str) -> None:
    q, k, v = inputs(1, 10)
    with pytest.raises(UsageError, match=message):
        window_attention(q, k, v, **{"window": 4, **change})
