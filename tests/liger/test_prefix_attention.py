"""Prefix attention in converted models: without a prefix causal, from the cache the same."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FAMILIES, close, converted, small, tokens
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel, StaticCache

from linearize import LigerSpec, apply
from linearize.errors import UsageError
from linearize.liger import sizes
from linearize.liger.modeling import attention_mode
from linearize.ops import backend

SPECS = {
    "learned": {"mix": "learned"},
    "fixed, one layer kept": {"mix": "fixed", "keep_softmax": (0,)},
}


def with_prefix(family: str, **spec) -> PreTrainedModel:
    """`converted` with an encoder that has weight, low-rank differences and decays of its own."""
    model = converted(family, window=8, prefix="jrt", prefix_rank=4, **spec)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".prefix." in name and not name.endswith("down"):
                parameter.normal_(std=0.5)
    return model


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_prefix_of_length_0_is_the_plain_model(family: str) -> None:
    model = with_prefix(family)
    plain = converted(family, window=8)
    plain.load_state_dict(model.state_dict(), strict=False)
    ids = tokens(2, 40)
    expected = plain(ids, use_cache=False).logits
    for lengths in (None, 0, [0, 0], torch.tensor([0, 0])):
        assert torch.equal(model(ids, prefix_lengths=lengths, use_cache=False).logits, expected)
    mixed = model(ids, prefix_lengths=[0, 25], use_cache=False).logits
    close(mixed[0], expected[0])
    assert (mixed[1] - expected[1]).abs().max() > 1e-2


@torch.no_grad()
def test_an_untrained_encoder_changes_nothing() -> None:
    ids = tokens(2, 40)
    model = apply(small("llama"), LigerSpec(prefix="jrt", mix="fixed"))
    plain = apply(small("llama"), LigerSpec(mix="fixed"))
    close(model(ids, prefix_lengths=30).logits, plain(ids).logits, atol=1e-6)


@torch.no_grad()
def test_the_prefix_sees_itself_whole_and_nothing_behind_it() -> None:
    model, ids = with_prefix("llama"), tokens(1, 40)
    first = model(ids, prefix_lengths=30, use_cache=False).logits
    ids[0, 29] += 1
    within = model(ids, prefix_lengths=30, use_cache=False).logits
    assert (within[0, 3] - first[0, 3]).abs().max() > 1e-3, "position 3 reads token 29"
    ids[0, 29] -= 1
    ids[0, 30:] = 5
    behind = model(ids, prefix_lengths=30, use_cache=False).logits
    close(behind[0, :30], first[0, :30], atol=1e-5)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=5)
@given(data=st.data())
@torch.no_grad()
def test_prefill_and_steps_equal_the_full_pass(family: str, spec: dict, data) -> None:
    model, T = with_prefix(family, **spec), 40
    ids, mask = tokens(2, T), torch.ones(2, T, dtype=torch.long)
    mask[0, : data.draw(st.integers(0, 20))] = 0
    prompt = data.draw(st.integers(21, T - 1))
    real = mask[:, :prompt].sum(1)
    lengths = torch.tensor([data.draw(st.sampled_from([0, n // 2, n])) for n in real.tolist()])
    full = model(ids, attention_mask=mask, prefix_lengths=lengths, use_cache=False).logits
    kind = data.draw(st.sampled_from(["dynamic", "static"]))
    cache = (
        StaticCache(config=model.config, max_cache_len=64)
        if kind == "static"
        else DynamicCache(config=model.config)
    )
    seen = mask[:, :prompt]
    pieces = [
        model(ids[:, :prompt], attention_mask=seen, prefix_lengths=lengths, past_key_values=cache)
    ]
    cuts = [prompt, *sorted(data.draw(st.sets(st.integers(prompt + 1, T), max_size=5))), T]
    for start, end in pairwise(cuts):
        if start < end:
            seen = mask[:, :end]
            piece = model(ids[:, start:end], attention_mask=seen, past_key_values=cache)
            pieces.append(piece)
    close(torch.cat([p.logits for p in pieces], 1)[mask.bool()], full[mask.bool()])
    for row in range(2):
        where = mask[row].bool()
        alone = model(ids[row : row + 1, where], prefix_lengths=lengths[row : row + 1]).logits[0]
        close(full[row, where], alone)


@torch.no_grad()
def test_the_definition_gives_the_same_logits() -> None:
    model, ids = with_prefix("qwen3"), tokens(2, 40)
    fast = model(ids, prefix_lengths=[40, 17], use_cache=False).logits
    with backend.use("recurrent"):
        close(model(ids, prefix_lengths=[40, 17], use_cache=False).logits, fast)


@torch.no_grad()
def test_generate_takes_the_prompt_as_prefix() -> None:
    model = with_prefix("llama")
    ids, mask = tokens(2, 20), torch.ones(2, 20, dtype=torch.long)
    mask[0, :7] = 0

    def written(**kw) -> torch.Tensor:
        return model.generate(
            ids, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0, **kw
        )[:, 20:]

    expected = ids
    for _ in range(12):
        longer = torch.ones(2, expected.shape[1], dtype=torch.long)
        longer[:, :20] = mask
        logits = model(
            expected, attention_mask=longer, prefix_lengths=mask.sum(1), use_cache=False
        ).logits
        expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    expected = expected[:, 20:]
    assert torch.equal(written(), expected)
    assert torch.equal(written(cache_implementation="static", disable_compile=True), expected)
    assert torch.equal(written(use_cache=False, prefix_lengths=mask.sum(1)), expected)
    alone = model.generate(ids[:1, 7:], max_new_tokens=12, num_beams=2, pad_token_id=0)[:, 13:]
    assert torch.equal(written(num_beams=2)[:1], alone)
    assert not torch.equal(written(prefix_lengths=0), expected)
    with pytest.raises(UsageError, match="prefix_lengths"):
        written(use_cache=False)


@torch.no_grad()
def test_the_teacher_and_the_window_do_not_see_it() -> None:
    model, ids = with_prefix("llama"), tokens(2, 40)
    for mode in ("softmax", "window"):
        with attention_mode(model, mode):
            plain = model(ids, use_cache=False).logits
            assert torch.equal(model(ids, prefix_lengths=30, use_cache=False).logits, plain)


@torch.no_grad()
def test_saved_and_loaded(tmp_path: Path) -> None:
    model, ids = with_prefix("llama").to(torch.bfloat16), tokens(1, 40)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    kept = {p.dtype for n, p in again.named_parameters() if ".prefix." in n}
    assert kept == {torch.float32}
    close(again(ids, prefix_lengths=20).logits, model(ids, prefix_lengths=20).logits, atol=0.1)


def test_every_encoder_parameter_learns() -> None:
    model, ids = with_prefix("llama"), tokens(2, 40)
    model(ids, prefix_lengths=20, use_cache=False).logits[:, 20:].square().mean().backward()
    for name, parameter in model.named_parameters():
        if ".prefix." in name:
            assert parameter.grad.abs().max() > 0, name


def test_parameters_are_counted() -> None:
    base = small("llama").config
    for spec in (LigerSpec(prefix="jrt", prefix_rank=3), LigerSpec(mix="fixed", prefix="jrt")):
        shape = sizes.Shape.of(base, spec)
        model = sizes.converted_model(base, spec)
        added = sizes.parameters(model) - sizes.parameters(sizes.base_model(base))
        assert sizes.added_parameters(shape, spec) == sizes.mix_parameters(model) == added


def test_what_cannot_be_done() -> None:
    with pytest.raises(UsageError, match="mix='window'"):
        LigerSpec(prefix="jrt", mix="window")
    with pytest.raises(UsageError, match="did you mean 'jrt'"):
        LigerSpec(prefix="jtr")
    with pytest.raises(UsageError, match="prefix_rank=-1"):
        LigerSpec(prefix="jrt", prefix_rank=-1)
    ids = tokens(2, 12)
    with pytest.raises(UsageError, match=r"liger\.prefix=jrt"):
        converted("llama")(ids, prefix_lengths=5)
    model = with_prefix("llama")
    with pytest.raises(UsageError, match="length 13 of row 0"):
        model(ids, prefix_lengths=13)
    with pytest.raises(UsageError, match="several documents"):
        model(ids, position_ids=torch.arange(12).expand(2, -1) % 6, prefix_lengths=5)
    cache = DynamicCache(config=model.config)
    model(ids, past_key_values=cache)
    with pytest.raises(UsageError, match="12 tokens already"):
        model(ids, past_key_values=cache, prefix_lengths=5)
