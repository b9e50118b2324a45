"""Prefix linear attention: the authors' numbers, and the fast form against the definition."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from linearize.errors import UsageError
from linearize.ops import gla, prefix_gla, prefix_linear_attention
from linearize.ops.prefix import normalized, prefix_tokens, taylor_features

OUTPUTS = {"atol": 2e-5, "rtol": 1e-4}
STATES = {"atol": 1e-4, "rtol": 1e-4}
DOUBLE = {"atol": 1e-10, "rtol": 0.0}
LAYERS = [
    (layer, case) for layer, cases in {"a": (5, 8, 13), "b": (3, 10)}.items() for case in cases
]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "golden" / "jrt"


def heads(x: Tensor, weight: Tensor, H: int) -> Tensor:
    """[B, T, D] -> [B, T, H, *]"""
    return (x @ weight.T).unflatten(-1, (H, -1))


class Layer:
    """The published layer: projections, feature map, attention, output projection."""

    def __init__(self, golden: Path, name: str, dtype: torch.dtype) -> None:
        self.settings = json.loads((golden / f"pla_layer_{name}.json").read_text())
        self.tensors = load_file(golden / f"pla_layer_{name}.safetensors")
        self.w = {k[2:]: v.to(dtype) for k, v in self.tensors.items() if k.startswith("w.")}

    def project(self, x: Tensor, *names: str) -> list[Tensor]:
        return [heads(x, self.w[f"proj_{n}"], self.settings["num_heads"]) for n in names]

    def prefill(self, x: Tensor, mask: Tensor | None = None, **kw: Any) -> tuple[Tensor, Tensor]:
        q, k, ke, v, ve = self.project(x, "q", "k", "k_enc", "v", "v_enc")
        lengths = torch.full((len(x),), min(self.settings["enc_length"], x.shape[1]))
        if mask is not None:
            lengths = mask.sum(1)
        o, state = prefix_linear_attention(
            *(taylor_features(y) for y in (q, k)), v, taylor_features(ke), ve,
            prefix=prefix_tokens(lengths, mask, x.shape[1]), mask=mask,
            epsilon=self.settings["eps"], **kw,
        )  # fmt: skip
        return o.flatten(2) @ self.w["out_proj"].T, state

    def step(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.project(x, "q", "k", "v")
        q, k, v = (
            taylor_features(q),
            taylor_features(k),
            torch.nn.functional.pad(v, (0, 1), value=1),
        )
        o, state = gla(q, k, v, torch.zeros_like(k), initial_state=state)
        return normalized(o).flatten(2) @ self.w["out_proj"].T, state


def as_published(state: Tensor) -> tuple[Tensor, Tensor]:
    """[B, H, K, V + 1] -> kv [B, H, V, K], k [B, H, K]"""
    return state[..., :-1].transpose(-1, -2), state[..., -1]


@pytest.mark.parametrize("backend", ["recurrent", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "T"), LAYERS)
def test_published_layer(golden: Path, name: str, T: int, dtype: torch.dtype, backend: str) -> None:
    layer = Layer(golden, name, dtype)
    case = {k.split(".")[1]: v for k, v in layer.tensors.items() if k.startswith(f"T{T}.")}
    y, state = layer.prefill(case["x"].to(dtype), backend=backend)
    kv, k = as_published(state)
    outputs = []
    for t in range(4):
        o, state = layer.step(case["x_dec"][:, t : t + 1].to(dtype), state)
        outputs.append(o)
    decoded = torch.cat(outputs, 1)
    if dtype == torch.float64:
        torch.testing.assert_close(y, case["y_fp64"], **DOUBLE)
        torch.testing.assert_close(decoded, case["y_dec_fp64"], **DOUBLE)
    else:
        torch.testing.assert_close(y, case["y"], **OUTPUTS)
        torch.testing.assert_close(decoded, case["y_dec"], **OUTPUTS)
    kv_after, k_after = as_published(state)
    for got, name in (
        (kv, "kv_state"),
        (k, "k_state"),
        (kv_after, "kv_state_after"),
        (k_after, "k_state_after"),
    ):
        torch.testing.assert_close(got.float(), case[name], **STATES)


@pytest.mark.parametrize("name", ["a", "b"])
def test_padding_of_the_published_layer(golden: Path, name: str) -> None:
    layer = Layer(golden, name, torch.float64)
    case = {k.split(".")[1]: v for k, v in layer.tensors.items() if k.startswith("masked.")}
    x, mask = case["x"].double(), case["mask"].bool()
    y, state = layer.prefill(x, mask)
    torch.testing.assert_close(y[mask], case["y_post_map_fp64"][mask], **DOUBLE)
    kv, k = as_published(state)
    torch.testing.assert_close(kv, case["kv_state_post_map_fp64"], **DOUBLE)
    torch.testing.assert_close(k, case["k_state_post_map_fp64"], **DOUBLE)


def test_padding_as_the_released_checkpoints_saw_it(golden: Path) -> None:
    """Zeroing keys before the feature map, without a mask, is their behaviour."""
    layer = Layer(golden, "a", torch.float32)
    x, mask = layer.tensors["masked.x"], layer.tensors["masked.mask"].bool()
    q, k, ke, v, ve = layer.project(x, "q", "k", "k_enc", "v", "v_enc")
    k, ke = (torch.where(mask[..., None, None], y, 0) for y in (k, ke))
    o, _ = prefix_linear_attention(
        *(taylor_features(y) for y in (q, k)), v, taylor_features(ke), ve,
        prefix=torch.ones_like(mask),
    )  # fmt: skip
    y = o.flatten(2) @ layer.w["out_proj"].T
    torch.testing.assert_close(y[mask], layer.tensors["masked.y_reference"][mask], **OUTPUTS)


@pytest.mark.parametrize("backend", ["recurrent", "auto"])
def test_published_core(golden: Path, backend: str) -> None:
    core = load_file(golden / "pla_core_a.safetensors")
    N, M = core["q"].shape[2], core["k_enc"].shape[2]

    def made(dtype: torch.dtype, prefix: int) -> tuple[Tensor, Tensor]:
        x = {k: v.to(dtype).transpose(1, 2) for k, v in core.items() if v.ndim == 4}
        pad = (0, 0, 0, 0, 0, N - M)
        ke, ve = (torch.nn.functional.pad(x[n], pad) for n in ("k_enc", "v_enc"))
        q, k, ke = (taylor_features(y) for y in (x["q"], x["k_dec"], ke))
        at = torch.arange(N).expand(len(q), -1) < prefix
        return prefix_linear_attention(q, k, x["v_dec"], ke, ve, prefix=at, backend=backend)

    torch.testing.assert_close(made(torch.float32, M)[0], core["y"].transpose(1, 2), **OUTPUTS)
    y, state = made(torch.float64, M)
    kv, k = as_published(state)
    torch.testing.assert_close(y, core["y_fp64"].transpose(1, 2), **DOUBLE)
    torch.testing.assert_close(kv, core["final_kv_state_fp64"], **DOUBLE)
    torch.testing.assert_close(k, core["final_k_state_fp64"], **DOUBLE)
    alone = made(torch.float64, 0)[0]
    torch.testing.assert_close(alone, core["y_causal_no_prefix_fp64"].transpose(1, 2), **DOUBLE)


def test_taylor_features(golden: Path) -> None:
    for row in json.loads((golden / "taylor_feature_map_a.json").read_text())["rows"]:
        close = {"atol": 1e-5, "rtol": 0.0}
        q, k = taylor_features(torch.tensor(row["q"])), taylor_features(torch.tensor(row["k"]))
        torch.testing.assert_close(q, torch.tensor(row["phi_q"]), **close)
        torch.testing.assert_close(k, torch.tensor(row["phi_k"]), **close)
        torch.testing.assert_close((q * k).sum(-1), torch.tensor(row["dot"]), **close)
        zero = taylor_features(torch.zeros(row["input_dim"]))
        assert zero[: len(row["phi_of_zero_first"])].tolist() == row["phi_of_zero_first"]


def gated(B: int, T: int, gate: float, seed: int) -> list[Tensor]:
    """q, k, v, g and the encoder's k, v, g in float64: four query heads over two states."""
    make = torch.Generator().manual_seed(seed)
    q, k, v, g, ke, ve, ge = (
        torch.randn(B, T, h, d, generator=make, dtype=torch.float64)
        for h, d in ((4, 8), (2, 8), (2, 6), (2, 8), (2, 8), (2, 6), (2, 8))
    )
    decays = (torch.nn.functional.logsigmoid(x * gate) for x in (g, ge))
    g, ge = decays
    return [q.softmax(-1), k.softmax(-1), v, g, ke.softmax(-1), ve, ge]


@settings(deadline=None, max_examples=30)
@given(data=st.data(), B=st.integers(1, 3), T=st.integers(1, 90), gate=st.sampled_from([0.1, 8.0]))
def test_fast_form_equals_the_definition(data, B: int, T: int, gate: float) -> None:
    rows = st.lists(st.booleans(), min_size=T, max_size=T)
    mask = torch.tensor(data.draw(st.lists(rows, min_size=B, max_size=B)))
    mask[0] = True
    lengths = torch.tensor(
        [data.draw(st.sampled_from([0, n, n // 2, n // 3])) for n in mask.sum(1)]
    )
    prefix = prefix_tokens(lengths, mask, T)
    tensors = gated(B, T, gate, data.draw(st.integers(0, 99)))
    found = {}
    for backend in ("recurrent", "chunk"):
        leaves = [x.clone().requires_grad_() for x in tensors]
        o, state = prefix_gla(*leaves, prefix=prefix, mask=mask, backend=backend)
        weight = torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view_as(o)
        ((o * weight).sum() + (state**2).sum()).backward()
        grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in leaves]
        found[backend] = [o.detach(), state.detach(), *grads]
    for got, expected in zip(found["chunk"], found["recurrent"], strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-11)


def test_the_definition_is_the_quadratic_form() -> None:
    """Without gates, from the formula of the paper, in one expression."""
    q, k, v, g, ke, ve, _ = gated(2, 17, 1.0, 3)
    lengths = torch.tensor([17, 6])
    prefix = prefix_tokens(lengths, None, 17)
    still = torch.zeros_like(g)
    o, _ = prefix_gla(q, k, v, still, ke, ve, still, prefix=prefix, backend="recurrent")
    q, k, v, ke, ve = (x.transpose(1, 2) for x in (q, k, v, ke, ve))
    k, v, ke, ve = (x.repeat_interleave(2, 1) for x in (k, v, ke, ve))
    whole = (q @ k.mT).tril() @ v + (q @ ke.mT * prefix[:, None, None]) @ ve
    torch.testing.assert_close(o.transpose(1, 2), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("T", [1, 7, 65])
def test_decoding_goes_on_from_the_state(T: int) -> None:
    tensors = gated(2, T + 20, 1.0, T)
    lengths = torch.tensor([T, T // 2])
    whole, last = prefix_gla(*tensors, prefix=prefix_tokens(lengths, None, T + 20))
    o, state = prefix_gla(*(x[:, :T] for x in tensors), prefix=prefix_tokens(lengths, None, T))
    pieces = [o]
    for start, end in ((T, T + 1), (T + 1, T + 12), (T + 12, T + 20)):
        o, state = gla(*(x[:, start:end] for x in tensors[:4]), initial_state=state)
        pieces.append(o)
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-11)


def test_what_stands_behind_the_prefix_is_not_encoded() -> None:
    tensors = gated(1, 30, 1.0, 0)
    prefix = prefix_tokens(torch.tensor([11]), None, 30)
    o, state = prefix_gla(*tensors, prefix=prefix)
    for x in tensors[4:]:
        x[:, 11:] = torch.nan
    again, same = prefix_gla(*tensors, prefix=prefix)
    torch.testing.assert_close(again, o, rtol=0, atol=0)
    torch.testing.assert_close(same, state, rtol=0, atol=0)


def test_no_prefix_is_plain_attention() -> None:
    tensors = gated(2, 70, 8.0, 1)
    o, state = prefix_gla(*tensors, prefix=torch.zeros(2, 70, dtype=torch.bool))
    plain, last = gla(*tensors[:4])
    assert torch.equal(o, plain)
    assert torch.equal(state, last)


def test_bad_prefixes() -> None:
    with pytest.raises(UsageError, match=r"length 9 of row 1 is outside 0 to 4"):
        prefix_tokens(torch.tensor([0, 9]), torch.arange(8).expand(2, -1) > 3, 8)
    tensors = gated(2, 5, 1.0, 0)
    with pytest.raises(UsageError, match="bool"):
        prefix_gla(*tensors, prefix=torch.ones(2, 5))
    tensors[5] = tensors[5][..., :3]
    with pytest.raises(UsageError, match="v_enc"):
        prefix_gla(*tensors, prefix=torch.ones(2, 5, dtype=torch.bool))
