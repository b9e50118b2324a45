"""The C forms against the definitions in double precision, and life without a compiler."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import backend, gla, window_attention
from linearize.ops.native import build, call
from linearize.ops.sinks import Sinks, first_tokens, numbers
from linearize.ops.window import dense

pytestmark = pytest.mark.skipif(not build.ready(), reason=f"not built here: {build.status()[1]}")
TOLERANCE = 3e-5  # of the largest number of a tensor


def close(
    got: tuple[Tensor, ...], expected: tuple[Tensor, ...], tolerance: float = TOLERANCE
) -> None:
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        scale = b.abs().max().clamp(min=0.1)
        torch.testing.assert_close(a.double() / scale, b / scale, rtol=0, atol=tolerance)


def with_gradients(form, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    """What `form` gives, and the gradients of a weighted sum of all of it."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    found = form(*leaves)
    found = found if isinstance(found, tuple) else (found,)
    weights = [torch.linspace(-1, 1, x.numel(), dtype=x.dtype).view_as(x) for x in found]
    sum((x * w).sum() for x, w in zip(found, weights, strict=True)).backward()
    return *(x.detach() for x in found), *(x.grad for x in leaves)


def both(form, tensors: list[Tensor], definition=None, tolerance: float = TOLERANCE) -> None:
    """`form` in single precision against the definition in double precision."""
    expected = with_gradients(definition or form, [x.double() for x in tensors])
    close(with_gradients(form, tensors), expected, tolerance)


def gla_inputs(
    B: int, T: int, *, groups: int, width: int, V: int, per_head: bool, gate: float, sequences: int
) -> list[Tensor]:
    make = partial(torch.randn, generator=torch.Generator().manual_seed(T))
    q, k, v = make(B, T, 2 * groups, width), make(B, T, 2, width), make(B, T, 2, V)
    g = F.logsigmoid(gate * make(B, T, 2, 1 if per_head else width))
    return [q.softmax(-1), k.softmax(-1), v, g, make(sequences, 2, width, V)]


@settings(deadline=None, max_examples=40)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 200),
    groups=st.sampled_from([1, 3]),
    width=st.sampled_from([1, 8, 16, 48, 80]),
    V=st.sampled_from([5, 16, 33, 96]),
    per_head=st.booleans(),
    gate=st.sampled_from([0.1, 1.0, 8.0, 100.0, 3000.0]),
)
def test_gla_is_the_definition(B: int, T: int, gate: float, **how) -> None:
    """Any gates: chunks are cut where decays leave the range, down to single tokens."""
    tensors = gla_inputs(B, T, gate=gate, sequences=B, **how)
    both(
        lambda *x: gla(*x[:4], initial_state=x[4], backend="native"),
        tensors,
        lambda *x: gla(*x[:4], initial_state=x[4], backend="recurrent"),
    )


def test_gates_of_every_strength_in_one_row() -> None:
    """Runs of strong gates within chunks of weak ones, and one that forgets everything."""
    tensors = gla_inputs(1, 150, groups=1, width=16, V=16, per_head=False, gate=1, sequences=1)
    g = tensors[3]
    g[:, 20:30] -= 50.0
    g[:, 64:66] -= 30.0
    g[:, 101] = -torch.inf
    both(
        lambda *x: gla(*x[:3], g.to(x[0].dtype), backend="native"),
        tensors[:3],
        lambda *x: gla(*x[:3], g.to(x[0].dtype), backend="recurrent"),
    )


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(0, 150), min_size=1, max_size=5).filter(sum))
def test_packed_sequences_keep_their_own_states(lengths: list[int]) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    how = {"groups": 3, "width": 16, "V": 16, "per_head": False, "gate": 3.0}
    tensors = gla_inputs(1, int(at[-1]), sequences=len(lengths), **how)

    def form(*x: Tensor, chosen: str) -> tuple[Tensor, Tensor]:
        return gla(*x[:4], initial_state=x[4], cu_seqlens=at, backend=chosen)

    both(partial(form, chosen="native"), tensors, partial(form, chosen="recurrent"))


def test_padding_leaves_states_alone() -> None:
    how = {"groups": 1, "width": 16, "V": 16, "per_head": False, "gate": 1.0}
    tensors = gla_inputs(3, 90, sequences=3, **how)
    for mask in (torch.ones(3, 90).bool(), torch.rand(3, 90) > 0.5):
        mask[0, :7] = mask[2, 80:] = False

        def form(*x: Tensor, chosen: str, mask: Tensor = mask) -> tuple[Tensor, Tensor]:
            return gla(*x[:4], initial_state=x[4], mask=mask, backend=chosen)

        both(partial(form, chosen="native"), tensors, partial(form, chosen="recurrent"))


def window_inputs(B: int, T: int, P: int, groups: int, width: int, V: int) -> list[Tensor]:
    make = partial(torch.randn, generator=torch.Generator().manual_seed(T))
    return [make(B, T, 2 * groups, width), make(B, P + T, 2, width), make(B, P + T, 2, V)]


@settings(deadline=None, max_examples=40)
@given(
    B=st.integers(1, 3),
    T=st.integers(1, 700),
    P=st.sampled_from([0, 1, 15, 70]),
    window=st.sampled_from([1, 2, 3, 16, 63, 64, 65, 200, 900]),
    groups=st.sampled_from([1, 3]),
    width=st.sampled_from([8, 16, 80]),
    V=st.sampled_from([16, 20]),
)
def test_window_is_the_definition(B: int, T: int, P: int, window: int, **how: int) -> None:
    tensors = window_inputs(B, T, P, **how)
    if window * window >= T * (P + T):
        window = max(T // 2, 1)  # else the definition would be compared with itself
    both(
        partial(window_attention, window=window, scale=0.3),
        tensors,
        partial(dense, window=window, scale=0.3),
    )


@settings(deadline=None, max_examples=25)
@given(lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(sum))
def test_windows_end_at_document_borders(lengths: list[int]) -> None:
    at = torch.tensor([0, *lengths]).cumsum(0)
    tensors = window_inputs(1, int(at[-1]), 0, groups=3, width=16, V=16)

    def apart(*x: Tensor) -> Tensor:
        each = ([t[:, a:b] for t in x] for a, b in pairwise(at.tolist()))
        return torch.cat([dense(*row, window=16, scale=0.25) for row in each], 1)

    both(partial(window_attention, window=16, cu_seqlens=at), tensors, apart)


@settings(deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(0, 90), min_size=1, max_size=6).filter(sum),
    window=st.sampled_from([1, 2, 16, 33]),
    sinks=st.sampled_from([1, 4, 16]),
    packed=st.booleans(),
)
def test_first_tokens_stay_in_sight(
    lengths: list[int], window: int, sinks: int, packed: bool
) -> None:
    at = torch.tensor([0, *lengths] if packed else [0, sum(lengths)]).cumsum(0)
    tensors = window_inputs(1, int(at[-1]), 0, groups=3, width=16, V=16)
    how = {"cu_seqlens": at} if packed else {}

    def form(*x: Tensor, there: bool) -> Tensor:
        first = [first_tokens(t, sinks, **how) for t in x[1:]]
        own = Sinks(*first, numbers(x[0].shape[1], **how), there)
        return window_attention(*x, window=window, sinks=own, **how)

    # all queries of a sequence add to a sink's gradients, some up, some down
    both(partial(form, there=True), tensors, partial(form, there=False), tolerance=3e-4)


def test_sinks_behind_padding() -> None:
    tensors = window_inputs(2, 100, 0, groups=1, width=16, V=16)
    mask = torch.ones(2, 100, dtype=torch.bool)
    mask[0, :30] = mask[1, -5:] = False

    def form(*x: Tensor, there: bool) -> Tensor:
        first = [first_tokens(t, 4, mask=mask) for t in x[1:]]
        own = Sinks(*first, numbers(100, mask=mask), there)
        return window_attention(*x, window=16, sinks=own, mask=mask)

    both(partial(form, there=True), tensors, partial(form, there=False))


def test_scores_of_any_size_stay_finite() -> None:
    q, k, v = window_inputs(1, 100, 0, groups=1, width=16, V=16)
    both(
        lambda *x: window_attention(*x, window=16, scale=40.0),
        [q, k, v],
        partial(dense, window=16, scale=40.0),
    )


def test_views_need_no_copy() -> None:
    """Heads that stand apart in memory, as in a fused projection, and outer slices."""
    fused = torch.randn(2, 150, 4 * 16 + 2 * 16 + 2 * 16)
    q, k, v = (
        x.view(2, 150, -1, 16) for x in fused.split([64, 32, 32], -1)
    )  # strides of the fused row
    cut = [x[:, 30:140] for x in (q, k, v)]
    both(partial(window_attention, window=16), cut, partial(dense, window=16, scale=0.25))
    g = F.logsigmoid(k[:, 30:140])
    both(
        lambda *x: gla(*x, backend="native"),
        [*cut, g],
        lambda *x: gla(*x, backend="recurrent"),
    )


def test_it_is_what_auto_takes_and_use_can_refuse() -> None:
    q, k, v = window_inputs(1, 100, 0, groups=1, width=16, V=16)
    g = F.logsigmoid(k)
    native = gla(q, k, v, g, backend="native")[0]
    assert torch.equal(gla(q, k, v, g)[0], native)
    near = window_attention(q, k, v, window=16)
    with backend.use("chunk"):
        assert not torch.equal(gla(q, k, v, g)[0], native)
        assert not torch.equal(window_attention(q, k, v, window=16), near)
    with pytest.raises(UsageError, match="it takes float32 on the CPU"):
        gla(*(x.double() for x in (q, k, v, g)), backend="native")


def test_threads_do_not_change_a_bit() -> None:
    q, k, v = window_inputs(2, 900, 0, groups=2, width=32, V=32)
    g, before = F.logsigmoid(k), torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(
                (
                    *with_gradients(lambda *x: gla(*x, backend="native"), [q, k, v, g]),
                    *with_gradients(partial(window_attention, window=64), [q, k, v]),
                )
            )
    finally:
        torch.set_num_threads(before)
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_tensors_it_does_not_take() -> None:
    row = torch.randn(1, 9, 2, 16)
    assert call.takes(row, row)
    assert not call.takes(row.double(), row)
    assert not call.takes(row.bfloat16(), row.bfloat16())


WITHOUT = """
import torch
from linearize.ops import backend, gla
from linearize.ops.native import build
q = torch.randn(1, 9, 2, 16)
gla(q, q, q, -q.abs())
print(build.status(), backend.report()[0])
"""


@pytest.mark.parametrize(
    ("environment", "why"),
    [
        ({"LINEARIZE_NATIVE": "0"}, "LINEARIZE_NATIVE=0 is set"),
        ({"PATH": "", "CC": ""}, "no C compiler"),
        ({"CC": "false"}, "false failed"),
    ],
)
def test_without_a_compiler_ops_run_in_torch(environment: dict, why: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    assert why in done.stdout
    assert "'backend': 'chunk'" in done.stdout


def test_a_library_is_made_once(tmp_path) -> None:
    command = [sys.executable, "-c", "from linearize.ops.native import build; print(build.ready())"]
    env = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    for _ in range(2):
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        assert done.stdout == "True\n"
    (made,) = (tmp_path / "linearize" / "native").iterdir()
    assert made.suffix == ".so"
