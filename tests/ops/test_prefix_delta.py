"""Prefix attention under the delta rule, against what it stands for: writing the prefix twice."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import delta, prefix_delta, prefix_gla
from linearize.ops.prefix import prefix_tokens

EXACT = {"rtol": 0.0, "atol": 1e-11}


def inputs(B: int, T: int, *, seed: int, gate: float = 0.1) -> list[Tensor]:
    """q, k, v, beta, g, k_enc, v_enc, beta_enc, g_enc in float64, two query heads per head."""
    make = torch.Generator().manual_seed(seed)

    def draw(heads: int, width: int) -> Tensor:
        return torch.randn(B, T, heads, width, generator=make, dtype=torch.float64)

    def written() -> list[Tensor]:
        k, v, beta, g = draw(2, 4), draw(2, 3), draw(2, 1), draw(2, 1)
        return [F.normalize(k, dim=-1), v, beta.sigmoid(), -gate * g.abs()]

    return [F.normalize(draw(4, 4), dim=-1), *written(), *written()]


def by_hand(tensors: list[Tensor], lengths: list[int]) -> tuple[Tensor, Tensor]:
    """Row by row, token by token."""
    outputs, states = [], []
    for b, length in enumerate(lengths):
        q, *both = (x[b] for x in tensors)
        own, encoder = both[:4], both[4:]
        state = q.new_zeros(2, 4, 3)

        def write(state: Tensor, t: int, k: Tensor, v: Tensor, beta: Tensor, g: Tensor) -> Tensor:
            state = g[t].exp()[..., None] * state
            held = torch.einsum("hk,hkv->hv", k[t], state)
            return state + torch.einsum("hk,hv->hkv", k[t], beta[t] * (v[t] - held))

        for t in range(length):
            state = write(state, t, *encoder)
        row = []
        for t in range(q.shape[0]):
            state = write(state, t, *own)
            row.append(torch.einsum("hgk,hkv->hgv", q[t].unflatten(0, (2, 2)), state).flatten(0, 1))
        outputs.append(torch.stack(row))
        states.append(state)
    return torch.stack(outputs), torch.stack(states)


@pytest.mark.parametrize("backend", ["recurrent", "chunk"])
@pytest.mark.parametrize(("T", "lengths"), [(1, [1, 0]), (7, [3, 7]), (70, [0, 41])])
def test_it_is_its_formula(T: int, lengths: list[int], backend: str) -> None:
    found = []
    for function in ("ours", "by hand"):
        leaves = [x.requires_grad_() for x in inputs(2, T, seed=T)]
        if function == "ours":
            prefix = prefix_tokens(torch.tensor(lengths), None, T)
            o, state = prefix_delta(*leaves, prefix=prefix, backend=backend)
        else:
            o, state = by_hand(leaves, lengths)
        weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
        ((o * weight).sum() + (state**2).sum()).backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        found.append([o.detach(), state.detach(), *grads])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got, expected, **EXACT)


def test_padding_does_not_matter() -> None:
    T, lengths = 20, [11, 4]
    tensors = inputs(2, T, seed=1)
    o, state = prefix_delta(*tensors, prefix=prefix_tokens(torch.tensor(lengths), None, T))
    mask = torch.ones(2, T + 9, dtype=torch.bool)
    mask[:, 2:5] = mask[0, 10:14] = mask[1, 25:29] = False
    mask[0, 27:] = mask[1, :2] = False
    assert (mask.sum(1) == T).all()
    padded = []
    for x in tensors:
        wide = torch.full((2, T + 9, *x.shape[2:]), 3.0, dtype=x.dtype)
        wide[mask] = x.flatten(0, 1)
        padded.append(wide)
    prefix = prefix_tokens(torch.tensor(lengths), mask, T + 9)
    again, same = prefix_delta(*padded, prefix=prefix, mask=mask)
    torch.testing.assert_close(again[mask], o.flatten(0, 1), **EXACT)
    torch.testing.assert_close(same, state, **EXACT)


def test_with_the_layers_own_keys_it_reads_twice() -> None:
    T = 33
    tensors = inputs(1, T, seed=2)
    tensors[5:] = tensors[1:5]
    o, state = prefix_delta(*tensors, prefix=torch.ones(1, T, dtype=torch.bool))
    twice, last = delta(*(torch.cat([x, x], 1) for x in tensors[:5]))
    torch.testing.assert_close(o, twice[:, T:], **EXACT)
    torch.testing.assert_close(state, last, **EXACT)


def test_decoding_goes_on_from_the_state() -> None:
    T = 40
    tensors = inputs(2, T, seed=3)
    lengths = torch.tensor([30, 12])
    whole, last = prefix_delta(*tensors, prefix=prefix_tokens(lengths, None, T))
    first = [x[:, :30] for x in tensors]
    o, state = prefix_delta(*first, prefix=prefix_tokens(lengths, None, 30))
    more, state = delta(*(x[:, 30:] for x in tensors[:5]), initial_state=state)
    torch.testing.assert_close(torch.cat([o, more], 1), whole, **EXACT)
    torch.testing.assert_close(state, last, **EXACT)


def test_where_nothing_is_replaced_it_is_the_layer_of_gated_sums() -> None:
    """Orthogonal keys, written once each: the delta rule adds."""
    T = 4
    q, _, v, _, g, _, v_enc, _, _ = inputs(1, T, seed=4, gate=0.0)
    both = torch.eye(8, dtype=torch.float64)
    k, k_enc = (x[None, :, None].expand(1, T, 2, 8) for x in (both[:4], both[4:]))
    q, one = torch.cat([q, q], -1), torch.ones_like(g)
    prefix = torch.ones(1, T, dtype=torch.bool)
    o, state = prefix_delta(q, k, v, one, g, k_enc, v_enc, one, g, prefix=prefix)
    expected, last = prefix_gla(q, k, v, g, k_enc, v_enc, g, prefix=prefix)
    torch.testing.assert_close(o, expected, **EXACT)
    torch.testing.assert_close(state, last, **EXACT)


def test_what_stands_behind_the_prefix_is_not_encoded() -> None:
    tensors = inputs(1, 30, seed=5)
    prefix = prefix_tokens(torch.tensor([11]), None, 30)
    o, state = prefix_delta(*tensors, prefix=prefix)
    for x in tensors[5:]:
        x[:, 11:] = torch.nan
    again, same = prefix_delta(*tensors, prefix=prefix)
    assert torch.equal(again, o)
    assert torch.equal(same, state)
    none = torch.zeros_like(prefix)
    plain, last = delta(*tensors[:5])
    o, state = prefix_delta(*tensors, prefix=none)
    assert torch.equal(o, plain)
    assert torch.equal(state, last)


def test_shapes_must_fit() -> None:
    tensors = inputs(1, 5, seed=6)
    tensors[7] = tensors[7][..., :0]
    with pytest.raises(UsageError, match="beta_enc"):
        prefix_delta(*tensors, prefix=torch.ones(1, 5, dtype=torch.bool))
