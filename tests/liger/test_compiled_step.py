"""Compiled steps compute what plain steps do, for every family and gate, alone and in batches."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch
from models import converted, tokens
from transformers import DynamicCache, StaticCache

import linearize
from linearize import pretrained
from linearize.decoding import generate
from linearize.errors import UsageError
from linearize.liger import step
from linearize.liger.bases import supported
from linearize.liger.gates import GATES
from linearize.liger.step import compiled_steps

compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
SIZE = {"window": 16}


@pytest.fixture
def traced(monkeypatch) -> list:
    """The graphs that are handed to the compiler, run as they are."""
    made: list = []
    monkeypatch.setattr(step, "_compiled", {})
    monkeypatch.setattr(step, "_compile", lambda graph, _: made.append(graph) or graph)
    return made


def logits(model, ids, *, when, past=40, mask=None, cache=None):
    """[B, T - past, vocabulary] of single tokens behind a prompt, and the cache."""
    cache = DynamicCache(config=model.config) if cache is None else cache
    found, seen = [], (None if mask is None else mask[:, :past])
    with torch.inference_mode(), compiled_steps(model, when):
        how = {"past_key_values": cache, "use_cache": True}
        model(input_ids=ids[:, :past], attention_mask=seen, **how)
        for t in range(past, ids.shape[1]):
            seen = None if mask is None else mask[:, : t + 1]
            found.append(model(input_ids=ids[:, t : t + 1], attention_mask=seen, **how).logits)
    return torch.cat(found, 1), cache


def same(model, ids, **how) -> None:
    (plain, first), (fast, second) = (
        logits(model, ids, when=w, **how) for w in ("never", "always")
    )
    torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)
    for one, other in zip(first.layers, second.layers, strict=True):
        torch.testing.assert_close(other.keys, one.keys, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(other.values, one.values, atol=1e-5, rtol=1e-5)
        assert one.get_seq_length() == other.get_seq_length()
        for i, state in one.recurrent_states.items() if hasattr(one, "recurrent_states") else ():
            if state is not None:
                torch.testing.assert_close(other.recurrent_states[i], state, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", [f for f in supported() if f not in ("mixtral", "qwen3_moe")])
def test_every_family(family, traced) -> None:
    same(converted(family, **SIZE), tokens(1, 48))
    assert traced


@pytest.mark.parametrize(
    "spec",
    [
        *({"gate": gate} for gate in GATES),
        *({"mix": mix, "sinks": 3} for mix in ("joint", "delayed", "window")),
        {"keep_softmax": [0]},
    ],
    ids=str,
)
def test_every_gate_and_mix(spec, traced) -> None:
    same(converted("llama", **SIZE, **spec), tokens(2, 48))
    assert len(traced) == 1, "equal layers share a graph"


def test_padding_within_reach_of_the_window_takes_the_plain_way(traced) -> None:
    model, ids = converted("llama", mix="joint", sinks=2, **SIZE), tokens(2, 60)
    mask = torch.ones_like(ids)
    mask[1, :30] = 0
    same(model, ids, mask=mask)  # from 40 on: the second row's window fills on the way
    assert len(traced) == 1
    short = torch.cat([mask[:, :30], mask[:, 30:50]], 1)
    same(model, ids[:, :44], mask=short[:, :44])
    assert len(traced) == 1, "its window is not full before token 49"


def test_what_does_not_fit_takes_the_plain_way(traced) -> None:
    model, ids = converted("llama", **SIZE), tokens(1, 24)
    same(model, ids, past=10)  # a window that is not full at first
    assert len(traced) == 1
    static = StaticCache(config=model.config, max_cache_len=64)
    logits(model, ids, when="always", past=20, cache=static)
    with compiled_steps(model, "always"):
        cache = model(input_ids=ids, use_cache=True).past_key_values
        assert model(input_ids=ids[:, :1], past_key_values=cache).logits.requires_grad
    assert len(traced) == 1
    assert not any("forward" in vars(m) for m in model.modules()), "nothing is left behind"


def test_new_weights_count_at_once(traced) -> None:
    model, ids = converted("llama", **SIZE), tokens(1, 44)
    before, _ = logits(model, ids, when="always")
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    model.model.layers[0].mlp.up_proj.weight = torch.nn.Parameter(
        torch.randn_like(model.model.layers[0].mlp.up_proj.weight)
    )
    same(model, ids)
    assert not torch.allclose(logits(model, ids, when="always")[0], before)


def test_auto_waits_until_a_graph_would_have_paid(traced, monkeypatch) -> None:
    model, ids = converted("llama", **SIZE), tokens(1, 60)
    monkeypatch.setattr(step.shutil, "which", lambda name: "/bin/" + name)
    monkeypatch.setattr(step, "WORTH", 2 * 25)  # two layers
    logits(model, ids, when="auto")
    assert not traced
    logits(model, tokens(2, 60), when="auto")
    assert not traced, "another number of rows would be another graph"
    logits(model, ids, when="auto")
    assert len(traced) == 1
    monkeypatch.setattr(step.shutil, "which", lambda name: None)
    fresh = converted("llama", window=8)
    logits(fresh, tokens(1, 120), when="auto")
    assert len(traced) == 1, "without a compiler nothing is tried"


def test_a_graph_that_cannot_be_made_is_reported_once_and_nothing_is_lost(
    monkeypatch, caplog
) -> None:
    def fail(*_, **__):
        raise RuntimeError("no such compiler")

    monkeypatch.setattr(step, "_compiled", {})
    monkeypatch.setattr(step, "_compile", fail)
    step._report.cache_clear()
    with caplog.at_level(logging.WARNING):
        same(converted("llama", **SIZE), tokens(1, 44))
    assert [r.getMessage() for r in caplog.records] == [
        "no compiled step, going on without: RuntimeError: no such compiler"
    ]
    with (
        pytest.raises(UsageError, match="'sometimes' is not known"),
        compiled_steps(None, "sometimes"),
    ):
        pass


@pytest.mark.parametrize("how", [{}, {"sampler": "beam", "num_beams": 2}], ids=["greedy", "beams"])
def test_generate_writes_the_same_text_either_way(how, traced, shared) -> None:
    path = shared / "data" / "models" / "stories260K"
    model = linearize.apply(linearize.load(path), linearize.LigerSpec(mix="fixed", **SIZE))
    prompts = ["Once upon a time there was a dog.", "Lily and Tom went"]  # padded to one length
    words = pretrained.tokenizer(path)
    texts = [
        [x.text for x in generate(model, words, prompts, max_new_tokens=40, compile=when, **how)]
        for when in ("never", "always")
    ]
    assert texts[0] == texts[1]
    assert traced


@compiler
@pytest.mark.filterwarnings("ignore")  # of torch's compiler, about its own parts
def test_the_compiled_graph_is_the_same(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(step, "_compiled", {})
    model, ids = converted("llama", mix="joint", sinks=2, **SIZE), tokens(2, 44)
    same(model, ids)
    assert len(step._compiled) == 1


@pytest.mark.slow
@compiler
@pytest.mark.filterwarnings("ignore")
def test_the_whole_step_over_a_static_cache_is_one_graph_and_the_same(
    tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    model = converted("llama", window=16)
    whole = torch.compile(model.forward, fullgraph=True)
    ids, found = tokens(1, 60), []
    with torch.no_grad():
        for run in (model, whole):
            cache = StaticCache(config=model.config, max_cache_len=64)
            model(input_ids=ids[:, :40], past_key_values=cache, use_cache=True)
            rows = []
            for t in range(40, 60):
                how = {"position_ids": torch.tensor([[t]]), "use_cache": True}
                rows.append(run(input_ids=ids[:, t : t + 1], past_key_values=cache, **how).logits)
            found.append(torch.cat(rows, 1))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2, "one per step otherwise"
