"""Mixes whose recurrence covers what has left the window, against their definition."""

from __future__ import annotations

import math

import pytest
import torch
from models import close, converted, small, tokens
from torch import Tensor, nn
from transformers import DynamicCache, LlamaConfig

from linearize import LigerSpec
from linearize.errors import UsageError
from linearize.liger import sizes
from linearize.liger.layout import Layout
from linearize.liger.state import cache_bytes
from linearize.ops import backend

WINDOW, T = 8, 27
CASES = {
    "joint": {"mix": "joint"},
    "joint, sinks": {"mix": "joint", "sinks": 3},
    "joint, no decay": {"mix": "joint", "gate": "linear", "sinks": 1},
    "joint, hgrn2 from the value": {"mix": "joint", "gate": "hgrn2", "gate_source": "value"},
    "delayed": {"mix": "delayed", "sinks": 2},
    "delayed, one decay per head": {"mix": "delayed", "gate": "mamba2"},
}


def definition(layer: nn.Module, x: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """One output at a time, from every key that the token sees or remembers."""
    spec, (B, length, _) = layer.spec, x.shape
    q, k, v = layer.base.project(layer, x)
    turned_q, turned_k = layer.base.rotate(layer, q, k, rotary)
    phi_q, phi_k, v, g = layer.gate.inputs(q, k, v, spec)
    group = q.shape[2] // k.shape[2]
    outputs = []
    for t in range(length):
        seen = [s for s in range(t + 1) if s > t - spec.window or s < spec.sinks]
        left = [s for s in range(t + 1) if s not in seen]
        heads = []
        for h in range(q.shape[2]):
            j = h // group
            scores = (turned_q[:, t, h, None] * turned_k[:, seen, j]).sum(-1) * layer.scaling
            window = (scores.softmax(-1)[..., None] * v[:, seen, j]).sum(1)
            summed, count = torch.zeros_like(window), torch.zeros(B, 1)
            for s in left:  # decayed by the tokens that have left since
                decay = g[:, s + 1 : t - spec.window + 1, j].sum(1).exp()
                weight = (phi_q[:, t, h] * decay * phi_k[:, s, j]).sum(-1, keepdim=True)
                summed, count = summed + weight * v[:, s, j], count + weight
            weight = layer.mix.weight[h]
            if spec.mix == "delayed":
                heads.append(window + weight * (summed - window))
                continue
            share = torch.exp(weight + q[:, t, h] @ layer.mix.query[h])
            share = share[:, None] * 0.03 * q.shape[-1] / spec.window
            heads.append((window + share * summed) / (1 + share * count))
        outputs.append(torch.cat(heads, -1))
    return layer.o_proj(torch.stack(outputs, 1))


@pytest.mark.parametrize("form", ["chunk", "recurrent"])
@pytest.mark.parametrize("spec", CASES.values(), ids=CASES)
def test_layer_and_gradients_are_the_definition(spec: dict, form: str) -> None:
    model = converted("llama", window=WINDOW, **spec)
    layer = model.model.layers[0].self_attn
    torch.manual_seed(1)
    x = torch.randn(2, T, 32, requires_grad=True)
    rotary = model.model.rotary_emb(x, torch.arange(T)[None])
    weights = torch.randn(2, T, 32)
    found = {}
    with backend.use(form):
        for name, o in {
            "layer": layer(x, rotary, layout=Layout("liger", 0))[0],
            "definition": definition(layer, x, rotary),
        }.items():
            leaves = [x, *layer.parameters()]
            found[name] = o, *torch.autograd.grad((o * weights).sum(), leaves)
    for ours, defined in zip(found["layer"], found["definition"], strict=True):
        close(ours, defined, atol=2e-4 * max(1.0, defined.abs().max().item()))


@torch.no_grad()
def test_nothing_counts_twice() -> None:
    """A text that the window and the sinks hold is the window's alone, whatever the weights."""
    model = converted("llama", window=WINDOW, mix="joint", sinks=3)
    alone = converted("llama", window=WINDOW, mix="window", sinks=3)
    ids = tokens(2, WINDOW + 3)
    close(model(ids, use_cache=False).logits, alone(ids, use_cache=False).logits)
    ids = tokens(2, WINDOW + 4)
    close(model(ids).logits[:, :-1], alone(ids).logits[:, :-1])
    assert not torch.allclose(model(ids).logits[:, -1], alone(ids).logits[:, -1], atol=1e-2)


@torch.no_grad()
def test_a_base_window_that_is_shorter_decides_what_has_left() -> None:
    changes = {"sliding_window": 5}
    model = converted("mistral", changes=changes, window=WINDOW, mix="joint")
    short = converted("mistral", changes=changes, window=5, mix="joint")
    for layer in model.model.layers:  # the start depends on the window that was asked for
        layer.self_attn.mix.start += math.log(WINDOW / 5)
    ids, cache = tokens(2, 40), DynamicCache(config=model.config)
    expected = short(ids, use_cache=False).logits
    close(model(ids, use_cache=False).logits, expected)
    pieces = [model(x, past_key_values=cache).logits for x in ids.split([6, 1, 1, 20, 1, 11], 1)]
    close(torch.cat(pieces, 1), expected)


@pytest.mark.parametrize("gate", ["gla", "gsa"])
@torch.no_grad()
def test_the_cache_has_the_stated_size(gate: str) -> None:
    spec = LigerSpec(mix="joint", window=WINDOW, sinks=2, gate=gate, slots=5)
    model = converted("llama", mix="joint", window=WINDOW, sinks=2, gate=gate, slots=5)
    shape = sizes.Shape.of(LlamaConfig(**small("llama").config.to_diff_dict()), spec)
    for length in (3, 20, 60):
        cache = DynamicCache(config=model.config)
        model(tokens(1, length), past_key_values=cache)
        assert cache_bytes(cache) == sizes.converted_cache_bytes(shape, spec, length, torch.float32)
    assert sizes.state_bytes(shape, spec, torch.float32)["total"] == cache_bytes(cache)
    assert sizes.added_parameters(shape, spec) == sizes.mix_parameters(model)
    even = sizes.break_even(shape, spec, torch.float32)
    held = [
        sizes.base_cache_bytes(shape, n, torch.float32)
        - sizes.converted_cache_bytes(shape, spec, n, torch.float32)
        for n in (even - 1, even)
    ]
    assert held[0] < 0 <= held[1]


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"mix": "joint", "gate": "deltanet"}, "their sum is no normaliser"),
        ({"mix": "joint", "gate_source": "query"}, "the query of a token"),
        ({"mix": "delayed", "prefix": "jrt"}, "only what has left the window"),
    ],
)
def test_what_cannot_be_is_refused(spec: dict, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        converted("llama", window=WINDOW, **spec)
