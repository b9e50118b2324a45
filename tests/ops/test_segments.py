"""Rows longer than a segment against the definitions: outputs, states, gradients, what is kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.ops import delta, gla, gsa, segments, window_attention
from linearize.ops.sinks import Sinks, first_tokens, numbers
from linearize.ops.window import dense


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks a segment, so that the definitions need not read thousands of tokens."""
    monkeypatch.setattr(segments, "SEGMENT", 128)


def inputs(
    B: int, T: int, *, gate: float = 1.0, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    make = torch.Generator().manual_seed(T)
    sizes = ((4, 8), (2, 8), (2, 6), (2, 8))
    q, k, v, p = (torch.randn(B, T, *s, generator=make, dtype=dtype) for s in sizes)
    return [q.softmax(-1), k.softmax(-1), v, F.logsigmoid(p * gate)]


def replaced(q: Tensor, k: Tensor, v: Tensor, g: Tensor, **how) -> tuple[Tensor, Tensor]:
    return delta(q, F.normalize(k, dim=-1), v, g[..., :1].exp(), g[..., 1:2], **how)


def with_gradients(op: Callable, tensors: list[Tensor], **how) -> tuple[Tensor, ...]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    o, last = op(*leaves, **how)
    states = last if isinstance(last, tuple) else (last,)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    ((o * weight).sum() + sum((x**2).sum() for x in states)).backward()
    return o.detach(), *(x.detach() for x in states), *(x.grad for x in leaves)


def close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


@pytest.mark.parametrize("op", [gla, gsa, replaced])
@pytest.mark.parametrize(("B", "T"), [(1, 300), (1, 256), (3, 130)])
def test_long_rows_equal_the_definition(op: Callable, B: int, T: int) -> None:
    tensors = inputs(B, T, gate=8.0)
    assert len(segments.pieces(B, T, 4, None)) > 1
    expected = with_gradients(op, tensors, backend="recurrent")
    close(with_gradients(op, tensors, backend="chunk"), expected)
    with torch.no_grad():
        o, _ = op(*tensors, backend="chunk")
    close((o,), expected[:1])


@pytest.mark.parametrize("op", [gla, gsa, replaced])
def test_long_and_short_sequences_in_one_row(op: Callable) -> None:
    at = torch.tensor([0, 5, 0, 200, 60, 60, 20, 128, 129, 3, 0]).cumsum(0)
    tensors = inputs(1, int(at[-1]))
    expected = with_gradients(op, tensors, cu_seqlens=at, backend="recurrent")
    close(with_gradients(op, tensors, cu_seqlens=at, backend="chunk"), expected)


def test_a_state_goes_in_and_gradients_come_out_of_it() -> None:
    *tensors, start = *inputs(2, 290), torch.randn(2, 2, 8, 6, dtype=torch.float64)

    def op(*given: Tensor, **how) -> tuple[Tensor, Tensor]:
        return gla(*given[:4], initial_state=given[4], **how)

    expected = with_gradients(op, [*tensors, start], backend="recurrent")
    close(with_gradients(op, [*tensors, start], backend="chunk"), expected)


@pytest.mark.parametrize("window", [1, 20, 200])
@pytest.mark.parametrize(("lengths", "sinks"), [(None, 0), (None, 3), ([90, 7, 230], 0)])
def test_windows_reach_back_into_the_segment_before(
    window: int, lengths: list[int] | None, sinks: int
) -> None:
    T = 330 if lengths is None else sum(lengths)
    q, k, v, _ = inputs(1, T)
    at = None if lengths is None else torch.tensor([0, *lengths]).cumsum(0)

    def far(k: Tensor, v: Tensor) -> dict[str, Sinks]:
        if not sinks:
            return {}
        return {"sinks": Sinks(first_tokens(k, sinks), first_tokens(v, sinks), numbers(T))}

    def fast(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple]:
        return window_attention(q, k, v, window=window, cu_seqlens=at, **far(k, v)), ()

    def slow(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, tuple]:
        cuts = [slice(0, T)] if at is None else map(slice, at.tolist(), at.tolist()[1:])
        how = {"window": window, "scale": 8**-0.5, **far(k, v)}
        return torch.cat([dense(q[:, c], k[:, c], v[:, c], **how) for c in cuts], 1), ()

    close(with_gradients(fast, [q, k, v]), with_gradients(slow, [q, k, v]))


def test_what_is_kept_for_the_backward_pass_is_inputs_and_a_state_per_segment() -> None:
    tensors = [x.requires_grad_() for x in inputs(1, 1000)]
    kept: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        gla(*tensors, backend="chunk")
        window_attention(*tensors[:3], window=20)
    states = 8 * (2 * 8 * 6) * 8  # 8 segments, float64
    assert sum(kept.values()) <= sum(x.nbytes for x in tensors) + states
