"""Every form of gated linear attention against the definition: outputs, gradients, final state."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import backend, gla
from linearize.ops.chunks import MAX_FACTORED_RANGE

Inputs = tuple[Tensor, Tensor, Tensor, Tensor]
TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-11}


def inputs(
    B: int, T: int, *, heads: int = 4, groups: int = 2, K: int = 8, V: int = 6, gate: float = 1.0,
    seed: int = 0, dtype: torch.dtype = torch.float64,
) -> Inputs:  # fmt: skip
    """Random q, k, v and log decays whose logits have standard deviation `gate`."""
    make = torch.Generator().manual_seed(seed)
    q, k, v, p = (
        torch.randn(B, T, h, d, generator=make, dtype=dtype)
        for h, d in ((heads, K), (heads // groups, K), (heads // groups, V), (heads // groups, K))
    )
    return q.softmax(-1), k.softmax(-1), v, F.logsigmoid(p * gate)


def state(S: int, *, heads: int = 2, K: int = 8, V: int = 6, dtype=torch.float64) -> Tensor:
    make = torch.Generator().manual_seed(1)
    return torch.randn(S, heads, K, V, generator=make, dtype=dtype)


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=TOLERANCE[b.dtype])


def with_gradients(tensors: Inputs, **kw) -> tuple[Tensor, ...]:
    """Output, final state and the gradients of a weighted sum of both."""
    leaves = [x.clone().requires_grad_() for x in tensors]
    start = kw.pop("initial_state", None)
    if start is not None:
        leaves.append(start.clone().requires_grad_())
    o, last = gla(*leaves[:4], initial_state=leaves[4] if start is not None else None, **kw)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    ((o * weight).sum() + (last**2).sum()).backward()
    return o.detach(), last.detach(), *(x.grad for x in leaves)


@settings(deadline=None, max_examples=40)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 200),
    gate=st.sampled_from([0.1, 1.0, 8.0, 100.0, 3000.0]),
    groups=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 9),
)
def test_chunks_equal_the_definition(B: int, T: int, gate: float, groups: int, seed: int) -> None:
    tensors = inputs(B, T, groups=groups, gate=gate, seed=seed)
    start = state(B, heads=4 // groups)
    expected = with_gradients(tensors, initial_state=start, backend="recurrent")
    close(with_gradients(tensors, initial_state=start, backend="chunk"), expected)


def test_gates_that_overflow_one_factored_chunk() -> None:
    """The case the halving form exists for: exp() of one chunk's decay leaves float32."""
    q, k, v, g = inputs(2, 130, gate=40.0, dtype=torch.float32)
    b = g[:, :64].cumsum(1)
    assert b.min() < -MAX_FACTORED_RANGE
    assert not torch.isfinite((-b).exp()).all(), "these gates would not overflow"
    expected = with_gradients((q, k, v, g), backend="recurrent")
    close(with_gradients((q, k, v, g), backend="chunk"), expected)


def test_one_extreme_gate_costs_no_precision() -> None:
    """A prefix sum of -1e5 would swallow the small gates after it."""
    q, k, v, g = inputs(1, 100, dtype=torch.float32)
    g[:, 3] = -1e5
    exact = gla(*(x.double() for x in (q, k, v, g)), backend="recurrent")
    close(gla(q, k, v, g, backend="chunk"), tuple(x.float() for x in exact))


@settings(deadline=None, max_examples=30)
@given(data=st.data(), T=st.integers(2, 180), gate=st.sampled_from([1.0, 100.0]))
def test_any_split_continues_from_the_state(data: st.DataObject, T: int, gate: float) -> None:
    tensors = inputs(2, T, gate=gate)
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=4)))
    whole = gla(*tensors, backend="recurrent")
    outputs, last = [], None
    for start, end in zip([0, *cuts], [*cuts, T], strict=True):
        o, last = gla(*(x[:, start:end] for x in tensors), initial_state=last)
        outputs.append(o)
    close((torch.cat(outputs, 1), last), whole)


@settings(deadline=None, max_examples=30)
@given(
    mask=st.integers(1, 150).flatmap(
        lambda T: st.lists(
            st.lists(st.integers(0, 19), min_size=T, max_size=T), min_size=1, max_size=3
        )
    ),
    padded=st.sampled_from([2, 10]),  # few are computed, many are left out
    gate=st.sampled_from([1.0, 100.0]),
)
def test_padding_anywhere_equals_the_row_without_it(
    mask: list[list[int]], padded: int, gate: float
) -> None:
    real = torch.tensor(mask) >= padded
    B, T = real.shape
    tensors, start = inputs(B, T, gate=gate), state(B)
    expected = with_gradients(tensors, initial_state=start, mask=real, backend="recurrent")
    close(with_gradients(tensors, initial_state=start, mask=real, backend="chunk"), expected)
    for row in range(B):
        kept = [x[row : row + 1, real[row]] for x in tensors]
        alone = gla(*kept, initial_state=start[row : row + 1], backend="recurrent")
        close((expected[0][row : row + 1, real[row]], expected[1][row : row + 1]), alone)
    assert not expected[0][~real].any(), "padding gave output"


@settings(deadline=None, max_examples=30)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(sum),
    gate=st.sampled_from([1.0, 100.0]),
)
def test_packed_sequences_equal_separate_ones(lengths: list[int], gate: float) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    tensors, start = inputs(1, int(at[-1]), gate=gate), state(len(lengths))
    got = with_gradients(tensors, initial_state=start, cu_seqlens=at, backend="chunk")
    close(got, with_gradients(tensors, initial_state=start, cu_seqlens=at, backend="recurrent"))
    for n, (begin, end) in enumerate(zip(at.tolist(), at.tolist()[1:], strict=False)):
        alone = gla(*(x[:, begin:end] for x in tensors), initial_state=start[n : n + 1])
        close((got[0][:, begin:end], got[1][n : n + 1]), alone)


def test_chunk_gradients_are_exact() -> None:
    """Against finite differences, so that definition and chunks cannot share a mistake."""
    tensors = [x.requires_grad_() for x in inputs(1, 9, K=3, V=2, gate=3.0)]
    start = state(1, K=3, V=2).requires_grad_()
    with backend.use("chunk"):
        assert torch.autograd.gradcheck(
            lambda *a: gla(*a[:4], initial_state=a[4]), (*tensors, start)
        )


def test_state_is_float32_and_output_keeps_the_dtype() -> None:
    q, k, v, g = inputs(1, 20, dtype=torch.float32)
    o, last = gla(q.bfloat16(), k.bfloat16(), v.bfloat16(), g)
    assert (o.dtype, last.dtype) == (torch.bfloat16, torch.float32)


def test_no_tokens_leave_the_state_alone() -> None:
    start = state(2)
    o, last = gla(*inputs(2, 0), initial_state=start)
    assert o.shape == (2, 0, 4, 6)
    assert torch.equal(last, start)
    real = torch.zeros(2, 70, dtype=torch.bool)
    for name in ("recurrent", "chunk"):
        o, last = gla(*inputs(2, 70), initial_state=start, mask=real, backend=name)
        assert torch.equal(last, start)
        assert not o.any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cu_seqlens": torch.tensor([0, 5, 9])}, "rise from 0 to the row's length 10"),
        ({"mask": torch.ones(1, 9, dtype=torch.bool)}, r"mask \(1, 9\) must be"),
        ({"initial_state": torch.zeros(2, 2, 8, 6)}, r"\[1, 2, 8, 6\]"),
        ({"backend": "chunks"}, "did you mean 'chunk'"),
        ({"backend": "fla"}, "backend 'fla' cannot run here"),
    ],
)
def test_misuse_is_named(change: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        gla(*inputs(1, 10), **change)


def test_heads_must_divide() -> None:
    q, k, v, g = inputs(1, 4)
    with pytest.raises(UsageError, match="3 query heads are not a multiple of 2"):
        gla(q[:, :, :3], k, v, g)
