"""One decay per head, slots, and the delta rule: every form against the definition."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import backend, delta, gla, gsa
from linearize.ops.forms import on_states

OPS: dict[str, Callable] = {"scalar": gla, "gsa": gsa, "delta": delta, "gated delta": delta}
HEADS, K, V, M = 4, 6, 5, 7
GATES = (0.1, 1.0, 8.0, 100.0)

every_op = pytest.mark.parametrize("name", OPS)
few = settings(deadline=None, max_examples=10)


def log_decays(B: int, T: int, heads: int, width: int, gate: float, make) -> Tensor:
    logits = torch.randn(B, T, heads, width, generator=make, dtype=torch.float64)
    return F.logsigmoid(logits * gate)


def inputs(
    name: str, B: int, T: int, *, gate: float = 1.0, groups: int = 2, seed: int = 0
) -> list[Tensor]:
    """Arguments of an op in float64, gate logits of standard deviation `gate`."""
    make = torch.Generator().manual_seed(seed)
    kv = HEADS // groups
    q, k, v = (
        torch.randn(B, T, h, d, generator=make, dtype=torch.float64)
        for h, d in ((HEADS, K), (kv, K), (kv, V))
    )
    if name == "gsa":
        return [q, k, v, log_decays(B, T, kv, M, gate, make)]
    g = log_decays(B, T, kv, 1, gate, make)
    if name == "scalar":
        return [q.softmax(-1), k.softmax(-1), v, g]
    beta = torch.randn(B, T, kv, 1, generator=make, dtype=torch.float64).sigmoid()
    tensors = [q.softmax(-1), F.normalize(k, dim=-1), v, beta]
    return [*tensors, g] if name == "gated delta" else tensors


def start(name: str, S: int, groups: int = 2) -> Tensor | tuple[Tensor, ...]:
    make = torch.Generator().manual_seed(1)
    shapes = [(K, M), (M, V)] if name == "gsa" else [(K, V)]
    states = tuple(
        torch.randn(S, HEADS // groups, *shape, generator=make, dtype=torch.float64)
        for shape in shapes
    )
    return states if len(states) > 1 else states[0]


def flat(state: Tensor | tuple[Tensor, ...]) -> list[Tensor]:
    return list(state) if isinstance(state, tuple) else [state]


def close(got: list[Tensor], expected: list[Tensor], atol: float = 1e-10) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)


def with_gradients(name: str, tensors: list[Tensor], state, **how) -> list[Tensor]:
    """Output, states and the gradients of a weighted sum of both."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    first = on_states(lambda x: x.detach().clone().requires_grad_(), state)
    o, last = OPS[name](*leaves, initial_state=first, **how)
    weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
    ((o * weight).sum() + sum((x**2).sum() for x in flat(last))).backward()
    found = [o.detach(), *(x.detach() for x in flat(last))]
    return found + [x.grad for x in [*leaves, *flat(first)]]


@every_op
@few
@given(
    B=st.integers(1, 2),
    T=st.integers(1, 140),
    gate=st.sampled_from(GATES),
    groups=st.sampled_from([1, 4]),
    seed=st.integers(0, 9),
)
def test_chunks_equal_the_definition(
    name: str, B: int, T: int, gate: float, groups: int, seed: int
) -> None:
    tensors, first = inputs(name, B, T, gate=gate, groups=groups, seed=seed), start(name, B, groups)
    expected = with_gradients(name, tensors, first, backend="recurrent")
    close(with_gradients(name, tensors, first, backend="chunk"), expected)


@every_op
def test_chunk_gradients_are_exact(name: str) -> None:
    """Against finite differences, so that definition and chunks cannot share a mistake."""
    tensors = [x.requires_grad_() for x in inputs(name, 1, 5, gate=3.0, groups=4)]
    first = [x.requires_grad_() for x in flat(start(name, 1, 4))]

    def call(*leaves: Tensor) -> tuple[Tensor, ...]:
        given = leaves[len(tensors) :]
        o, last = OPS[name](
            *leaves[: len(tensors)],
            initial_state=tuple(given) if name == "gsa" else given[0],
            backend="chunk",
        )
        return o, *flat(last)

    assert torch.autograd.gradcheck(call, (*tensors, *first))


@every_op
@pytest.mark.parametrize("kind", ["all -50", "from -50 to 0", "-50 now and then"])
def test_log_gates_of_minus_50_per_step(name: str, kind: str) -> None:
    tensors = inputs(name, 2, 130)
    make = torch.Generator().manual_seed(3)
    if name != "delta":
        shares = torch.rand(tensors[-1].shape, generator=make)
        shares = {"all -50": 1, "from -50 to 0": shares}.get(kind, shares < 0.1)
        tensors[-1] = -50.0 * shares * torch.ones_like(tensors[-1])
    single, first = [x.float() for x in tensors], on_states(lambda x: x.float(), start(name, 2))
    expected = with_gradients(name, tensors, start(name, 2), backend="recurrent")
    for form in ("recurrent", "chunk"):
        got = with_gradients(name, single, first, backend=form)
        assert all(x.isfinite().all() for x in got)
        close([x.double() for x in got], expected, atol=2e-4)


@every_op
@few
@given(data=st.data(), T=st.integers(2, 100), gate=st.sampled_from([1.0, 100.0]))
def test_any_split_continues_from_the_state(name: str, data, T: int, gate: float) -> None:
    tensors = inputs(name, 2, T, gate=gate)
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=3)))
    whole, end_state = OPS[name](*tensors, backend="recurrent")
    outputs, last = [], None
    for begin, end in zip([0, *cuts], [*cuts, T], strict=True):
        o, last = OPS[name](*(x[:, begin:end] for x in tensors), initial_state=last)
        outputs.append(o)
    close([torch.cat(outputs, 1), *flat(last)], [whole, *flat(end_state)])


@every_op
@few
@given(
    mask=st.integers(1, 80).flatmap(
        lambda T: st.lists(
            st.lists(st.integers(0, 19), min_size=T, max_size=T), min_size=1, max_size=2
        )
    ),
    padded=st.sampled_from([2, 10]),  # few are computed, many are left out
)
def test_padding_anywhere_equals_the_row_without_it(
    name: str, mask: list[list[int]], padded: int
) -> None:
    real = torch.tensor(mask) >= padded
    tensors, first = inputs(name, *real.shape), start(name, len(real))
    expected = with_gradients(name, tensors, first, mask=real, backend="recurrent")
    got = with_gradients(name, tensors, first, mask=real, backend="chunk")
    close(got, expected)
    assert not got[0][~real].any(), "padding gave output"
    for row in range(len(real)):
        kept = [x[row : row + 1, real[row]] for x in tensors]
        own = on_states(lambda x, row=row: x[row : row + 1], first)
        o, last = OPS[name](*kept, initial_state=own, backend="recurrent")
        states = [x[row : row + 1] for x in expected[1 : 1 + len(flat(last))]]
        close([expected[0][row : row + 1, real[row]], *states], [o, *flat(last)])


@every_op
@few
@given(lengths=st.lists(st.integers(0, 70), min_size=1, max_size=5).filter(sum))
def test_packed_sequences_equal_separate_ones(name: str, lengths: list[int]) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    tensors, first = inputs(name, 1, int(at[-1])), start(name, len(lengths))
    got = with_gradients(name, tensors, first, cu_seqlens=at, backend="chunk")
    close(got, with_gradients(name, tensors, first, cu_seqlens=at, backend="recurrent"))
    for n, (begin, end) in enumerate(zip(at.tolist(), at.tolist()[1:], strict=False)):
        own = on_states(lambda x, n=n: x[n : n + 1], first)
        o, last = OPS[name](*(x[:, begin:end] for x in tensors), initial_state=own)
        states = [x[n : n + 1] for x in got[1 : 1 + len(flat(last))]]
        close([got[0][:, begin:end], *states], [o, *flat(last)])


def test_the_delta_rule_replaces_what_a_key_held() -> None:
    """At beta 1 the same key reads back what was written last, through chunks of equal keys."""
    k = F.normalize(torch.ones(1, 100, 1, K), dim=-1)
    v = torch.randn(1, 100, 1, V, generator=torch.Generator().manual_seed(0))
    o, state = delta(k, k, v, torch.ones(1, 100, 1, 1), backend="chunk")
    torch.testing.assert_close(o, v, rtol=0, atol=1e-5)
    torch.testing.assert_close(k[:, -1, :, None, :] @ state, v[:, -1, :, None], rtol=0, atol=1e-5)


@every_op
def test_no_tokens_leave_the_state_alone(name: str) -> None:
    first = start(name, 2)
    for form in ("recurrent", "chunk"):
        o, last = OPS[name](*inputs(name, 2, 0), initial_state=first, backend=form)
        assert o.shape == (2, 0, HEADS, V)
        close(flat(last), flat(first), atol=0)


@every_op
def test_low_precision_in_float32_states_out(name: str) -> None:
    low = [x.bfloat16() for x in inputs(name, 1, 20)]
    o, last = OPS[name](*low)
    assert o.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in flat(last))


def test_misuse_is_named() -> None:
    q, k, v, g = inputs("gsa", 1, 10)
    with pytest.raises(UsageError, match=r"\[1, 2, 6, 7\], \[1, 2, 7, 5\]"):
        gsa(q, k, v, g, initial_state=start("delta", 1))
    with pytest.raises(UsageError, match=r"g \(1, 10, 1, 7\) do not fit"):
        gsa(q, k, v, g[:, :, :1])
    with pytest.raises(UsageError, match=r"g \[B, T, Hk, 6 or 1\]"):
        gla(q, k, v, g)
    with pytest.raises(UsageError, match="no kernel"), backend.use("fla"):
        gsa(q, k, v, g)


@pytest.mark.parametrize("form", ["recurrent", "chunk"])
@pytest.mark.parametrize("case", ["ops_t37", "ops_t130"])
def test_golden_operator_cases(golden, case: str, form: str) -> None:
    a = golden.tensors(case)
    q, k, unit, v = (a[n] for n in ("q_softmax", "k_softmax", "k_l2", "v"))
    channel, slot = a["log_decay_channel"], a["log_decay_slot"] / 16
    head, beta = a["log_decay_scalar"].unsqueeze(-1), a["beta"].unsqueeze(-1)
    one, slots = {"initial_state": a["state0"]}, {"initial_state": (a["slot_k0"], a["slot_v0"])}
    calls = {
        ("gla16.o", "gla16.state"): (gla, (q, k, v, channel / 16), one),
        ("hgrn2.o", "hgrn2.state"): (gla, (q, -torch.expm1(channel), v, channel), one),
        ("gsa16.o", "gsa16.slot_k", "gsa16.slot_v"): (gsa, (a["q"], a["k"], v, slot), slots),
        ("scalar.o", "scalar.state"): (gla, (q, k, v, head), one),
        ("delta.o", "delta.state"): (delta, (q, unit, v, beta), one),
        ("gated_delta.o", "gated_delta.state"): (delta, (q, unit, v, beta, head), one),
    }
    for names, (op, tensors, state) in calls.items():
        o, last = op(*tensors, **state, backend=form)
        close([o], [a[names[0]]], atol=1e-5)
        close(flat(last), [a[n] for n in names[1:]], atol=1e-4)
