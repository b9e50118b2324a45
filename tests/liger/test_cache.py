"""Decoding from the cache equals the full forward pass, whatever the padding and the split."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, close, converted, tokens
from transformers import Cache, DynamicCache, PreTrainedModel, StaticCache

from linearize.liger.state import cache_bytes

SPECS = {
    "fixed": {"mix": "fixed"},
    "learned, one layer kept": {"mix": "learned", "keep_softmax": (-1,)},
    "window": {"mix": "window"},
    "sinks, gate with two states": {"sinks": 3, "gate": "gsa", "slots": 5},
    "sinks and the window alone": {"sinks": 5, "mix": "window"},
    "delayed, gate with two states": {"mix": "delayed", "gate": "gsa", "slots": 5},
    "joint, sinks": {"mix": "joint", "sinks": 3},
}


@torch.no_grad()
def in_pieces(
    model: PreTrainedModel, ids: torch.Tensor, cuts: list[int], cache: Cache, mask=None
) -> torch.Tensor:
    """Logits of the whole row, computed piece by piece from the cache."""
    outputs = []
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        seen = None if mask is None else mask[:, :end]
        piece = model(ids[:, start:end], attention_mask=seen, past_key_values=cache)
        outputs.append(piece.logits)
    return torch.cat(outputs, 1)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@torch.no_grad()
def test_padding_that_the_windows_have_left(spec: dict, kind: str) -> None:
    model = converted("llama", window=8, **spec)
    ids, mask = tokens(2, 60), torch.ones(2, 60, dtype=torch.long)
    mask[0, :11] = mask[0, 14:20] = mask[1, 5] = 0
    cache = make_cache(model, kind)
    got = in_pieces(model, ids, [30, 31, 42, 55, 56], cache, mask)
    for row in range(2):
        alone = model(ids[row : row + 1, mask[row].bool()], use_cache=False).logits
        close(got[row, mask[row].bool()], alone[0])


def make_cache(model: PreTrainedModel, kind: str) -> Cache:
    if kind == "static":
        return StaticCache(config=model.config, max_cache_len=400)
    return DynamicCache(config=model.config)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_token_by_token_equals_full_forward(family: str) -> None:
    model = converted(family, window=64)
    ids = tokens(3, 300)
    mask = torch.ones_like(ids)
    mask[0, :90], mask[1, :13] = 0, 0
    full = model(ids, attention_mask=mask, use_cache=False).logits
    stepwise = in_pieces(model, ids, list(range(1, 300)), make_cache(model, "dynamic"), mask)
    close(stepwise[mask.bool()], full[mask.bool()])
    alone = model(ids[:1, 90:], use_cache=False).logits
    close(full[:1, 90:], alone)


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
@torch.no_grad()
def test_pieces_and_padding_anywhere(family: str, spec: dict, kind: str, data) -> None:
    model = converted(family, window=8, **spec)
    T = 40
    ids = tokens(2, T)
    rows = data.draw(
        st.lists(st.lists(st.booleans(), min_size=T, max_size=T), min_size=2, max_size=2)
    )
    mask = torch.tensor(rows)
    mask[:, -1] = True
    cuts = sorted(data.draw(st.sets(st.integers(1, T - 1), max_size=6)))
    got = in_pieces(model, ids, cuts, make_cache(model, kind), mask.long())
    for row in range(2):
        real = mask[row]
        alone = model(ids[row : row + 1, real], use_cache=False).logits
        close(got[row, real], alone[0])


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_cache_does_not_grow(family: str) -> None:
    model = converted(family, window=64)
    cache, sizes = make_cache(model, "dynamic"), set()
    ids = tokens(1, 5000)
    for start, end in ((0, 200), (200, 201), (201, 4900), (4900, 4999), (4999, 5000)):
        model(ids[:, start:end], past_key_values=cache)
        sizes.add(cache_bytes(cache))
    layers, kv_heads, size = 2, 2, 8
    expected = layers * kv_heads * (size * size * 4 + 2 * 63 * size * 4)
    step = layers * kv_heads * 2 * size * 4  # a single step keeps the slot it shifted out
    assert sizes == {expected, expected + step}


@torch.no_grad()
def test_static_and_dynamic_agree_past_the_window() -> None:
    model = converted("llama", window=16)
    ids = tokens(2, 90)
    cuts = [5, 6, 7, 30, 31, 32, 80]
    close(
        in_pieces(model, ids, cuts, make_cache(model, "static")),
        in_pieces(model, ids, cuts, make_cache(model, "dynamic")),
    )


@torch.no_grad()
def test_a_short_mask_is_refused() -> None:
    model = converted("llama", window=16)
    cache = make_cache(model, "dynamic")
    model(tokens(1, 20), past_key_values=cache)
    with pytest.raises(ValueError, match="covers 1 tokens, but the cache holds 20 and 1 are new"):
        model(tokens(1, 1), attention_mask=torch.ones(1, 1), past_key_values=cache)
