"""Layers in segments, features computed again in the backward pass, against whole rows."""

from __future__ import annotations

import pytest
import torch
from models import converted, tokens
from transformers import DynamicCache

from linearize.ops import segments

T = 150
CASES = {
    "gla": {},
    "two states": {"gate": "gsa", "slots": 5},
    "delta rule": {"gate": "gated_deltanet"},
    "no gate logits": {"gate": "retnet"},
    "gate from the query": {"gate": "mamba2", "gate_source": "query"},
    "sinks": {"sinks": 3},
    "delayed": {"mix": "delayed"},
    "joint": {"mix": "joint", "sinks": 2},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_gradients_are_those_of_whole_rows(
    case: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = converted("llama", window=16, **CASES[case]).double()
    ids, how = tokens(2, T), {}
    if packed:  # two documents in the first row, one in the second
        how["position_ids"] = torch.stack([torch.arange(T) % 90, torch.arange(T)])
    monkeypatch.setattr(segments, "SEGMENT", 64)
    found = []
    for whole in (False, True):
        if whole:
            monkeypatch.setattr(segments, "pay", lambda device: False)
        model.zero_grad()
        logits = model(input_ids=ids, use_cache=False, **how).logits
        logits.log_softmax(-1)[..., 0].mean().backward()
        found.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for name, grad in found[0].items():
        scale = found[1][name].abs().max().item()
        torch.testing.assert_close(grad, found[1][name], atol=2e-5 * scale, rtol=1e-3, msg=name)


@pytest.mark.parametrize("case", CASES)
def test_long_rows_are_read_in_segments_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = converted("llama", window=16, **CASES[case])
    found = []
    for size in (64, 1024):
        monkeypatch.setattr(segments, "SEGMENT", size)
        cache = DynamicCache(config=model.config)
        with torch.no_grad():
            logits = [
                model(input_ids=part, past_key_values=cache, use_cache=True).logits
                for part in tokens(2, T).split((100, 49, 1), 1)
            ]
        states = [x for entry in cache.layers for x in entry.recurrent_states.values()]
        found.append((torch.cat(logits, 1), *states))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)
