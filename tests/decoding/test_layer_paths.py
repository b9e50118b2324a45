"""Paths of layers: what is written is what runs, and every visit of a layer has its own cache."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    T5Config,
    T5ForConditionalGeneration,
)

import linearize
from linearize.decoding import generate
from linearize.decoding.layer_paths import layer_count, layer_path, parse, written
from linearize.errors import InputError, UsageError
from linearize.recurrent_depth.spec import LoopSpec

LAYERS = 4
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
HEADS = {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
MIXED = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 4}
FAMILIES = {
    "llama": HEADS,
    "mistral": {**HEADS, "sliding_window": 4},
    "qwen2": {**HEADS, "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 2},
    "qwen3": HEADS,
    "gemma3_text": {**HEADS, **MIXED},
    "olmo2": HEADS,
    "gpt2": {},
    "gpt_neox": {"intermediate_size": 48},
    "liger": HEADS,
}
PATHS = st.lists(st.integers(0, LAYERS - 1), min_size=1, max_size=8)
IDS = torch.randint(2, VOCABULARY, (2, 7), generator=torch.Generator().manual_seed(5))


def built(family: str):
    torch.manual_seed(3)
    name = "llama" if family == "liger" else family
    config = AutoConfig.for_model(name, **SIZES, **FAMILIES[family])
    model = AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # the default spread leaves attention nearly uniform
    if family == "liger":
        linearize.apply(model, linearize.LigerSpec(window=3, mix="fixed", keep_softmax=(2,)))
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request):
    return built(request.param)


@pytest.fixture(scope="module")
def llama():
    return built("llama")


@pytest.fixture(scope="module", params=["pretrained", "converted"])
def stories(request, shared):
    path = shared / "data" / "models" / "stories260K"
    model = AutoModelForCausalLM.from_pretrained(path)
    if request.param == "converted":
        linearize.apply(model, linearize.LigerSpec(window=8, mix="fixed", mix_weight=0.1))
    return model, AutoTokenizer.from_pretrained(path)


def by_hand(model, path):
    """Logits of a Llama whose layers are called one after the other, without any cache."""
    inner = model.model
    hidden = inner.embed_tokens(IDS)
    positions = torch.arange(IDS.shape[1])[None]
    rotary = inner.rotary_emb(hidden, positions)
    for layer in path:
        hidden = inner.layers[layer](hidden, position_embeddings=rotary, attention_mask=None)
    return model.lm_head(inner.norm(hidden))


def test_text_and_list():
    assert parse("0-3,5,5,6-11", 12) == [0, 1, 2, 3, 5, 5, 6, 7, 8, 9, 10, 11]
    assert parse(" 2 , 0 - 1 ", 3) == [2, 0, 1]
    assert written([0, 1, 2, 3, 5, 5, 6, 7]) == "0-3,5,5-7"


@given(PATHS)
def test_what_is_written_is_read_back(path):
    assert parse(written(path), LAYERS) == path


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "neither a layer nor a range"),
        ("0-3,,2", "''"),
        ("0..3", "'0..3'"),
        ("-1", "'-1'"),
        ("²", "'²'"),
        ("3-1", "1-3"),
        ("0-4", "4 layers, 0 to 3"),
        ("0-99999999999", "4 layers, 0 to 3"),
    ],
)
def test_bad_text_is_named(text, told):
    with pytest.raises(UsageError, match=told):
        parse(text, LAYERS)


def test_the_identity_changes_no_bit(model):
    with torch.no_grad():
        plain = model(IDS).logits
        with layer_path(model, range(LAYERS)) as same:
            assert same is model
            assert torch.equal(model(IDS).logits, plain)


def test_a_path_is_its_layers_one_after_the_other(llama):
    path = [0, 2, 2, 1, 1, 3, 0]
    with torch.no_grad():
        expected = by_hand(llama, path)
        with layer_path(llama, path):
            assert llama.config.num_hidden_layers == 7
            torch.testing.assert_close(llama(IDS).logits, expected, rtol=0, atol=1e-5)


@settings(max_examples=12, deadline=None)
@given(path=PATHS, rows=st.integers(1, 2), prompt=st.integers(1, 7))
def test_cached_is_uncached_token_for_token(model, path, rows, prompt):
    ids = IDS[:rows, :prompt]
    asked = {"max_new_tokens": 7, "do_sample": False, "pad_token_id": 0}
    ones = torch.ones_like(ids)
    with layer_path(model, path):
        cached = model.generate(ids, attention_mask=ones, **asked)
        plain = model.generate(ids, attention_mask=ones, use_cache=False, **asked)
    assert torch.equal(cached, plain)


def test_each_visit_has_its_own_cache(model):
    path = [1, 1, 3]
    with torch.no_grad(), layer_path(model, path):
        cache = model(IDS, past_key_values=DynamicCache(config=model.config)).past_key_values
        assert len(cache.layers) == 3
        assert not torch.equal(cache.layers[0].keys, cache.layers[1].keys)
        states = [getattr(entry, "recurrent_states", None) for entry in cache.layers]
        if states[0]:
            assert not torch.equal(states[0][0], states[1][0])


def test_the_model_comes_back_also_after_an_error(model):
    before, config = model.state_dict(), model.config.to_dict()
    with pytest.raises(ZeroDivisionError), layer_path(model, [3, 3, 0, 1, 2]):
        raise ZeroDivisionError
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == before[name].data_ptr() for name in before)
    assert model.config.to_dict() == config
    assert layer_count(model) == LAYERS
    slots = [m.layer_idx for m in model.modules() if hasattr(m, "layer_idx")]
    assert sorted(set(slots)) == list(range(LAYERS))


def test_weights_are_shared(llama):
    path = [0, 1, 1, 1, 2, 3]
    weights = {p.data_ptr() for p in llama.parameters()}
    with layer_path(llama, path):
        assert {p.data_ptr() for p in llama.parameters()} == weights
        llama(IDS, use_cache=False).logits.sum().backward()
    assert all(p.grad is not None for p in llama.parameters())
    llama.zero_grad(set_to_none=True)


def test_a_path_inside_a_path_counts_its_places(llama):
    with torch.no_grad():
        with layer_path(llama, [3, 1, 1]), layer_path(llama, [2, 0]):
            nested = llama(IDS).logits
        with layer_path(llama, [1, 3]):
            assert torch.equal(llama(IDS).logits, nested)


@pytest.mark.parametrize(
    "options",
    [{}, {"sampler": "sample", "top_k": 20}, {"sampler": "beam", "num_beams": 3}],
    ids=str,
)
def test_a_batch_is_one_by_one(stories, options):
    prompts = ["Once upon a time, there was a little girl", "Tom and his dog", "One day"]
    with layer_path(stories[0], "0-2,2-4"):
        together = generate(*stories, prompts, max_new_tokens=24, **options)
        alone = [generate(*stories, p, max_new_tokens=24, **options)[0] for p in prompts]
    plain = generate(*stories, prompts, max_new_tokens=24, **options)
    assert [r.ids for r in together] == [r.ids for r in alone]
    assert [r.ids for r in together] != [r.ids for r in plain]


def test_the_static_cache_has_a_place_for_each_visit(stories):
    model, tokenizer = stories
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    asked = {**inputs, "max_new_tokens": 12, "do_sample": False}
    with layer_path(model, "0,1,1,1-4"):
        static = model.generate(**asked, cache_implementation="static")
        assert torch.equal(static, model.generate(**asked))
    assert model.generate(**asked, cache_implementation="static").shape == static.shape


def test_a_path_must_have_layers_that_exist(llama):
    for path, told in [([], "empty"), ([0, 4], "0 to 3"), ([-1], "no layer -1")]:
        with pytest.raises(UsageError, match=told), layer_path(llama, path):
            pass


def test_a_hybrid_keeps_attention():
    kinds = ["linear_attention", "linear_attention", "full_attention", "linear_attention"]
    config = AutoConfig.for_model(
        "qwen3_next", **SIZES, **HEADS, layer_types=kinds, num_experts=0, mlp_only_layers=[0, 1, 2]
    )
    hybrid = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad(), layer_path(hybrid, [0, 2, 2, 3]):
        cached = hybrid.generate(IDS, max_new_tokens=5, do_sample=False, pad_token_id=0)
        full = hybrid(cached, use_cache=False).logits.argmax(-1)
    assert torch.equal(full[:, 6:-1], cached[:, 7:])
    with pytest.raises(UsageError, match="keep one of layers 2"), layer_path(hybrid, [0, 3]):
        pass


def test_models_that_cannot_be_rearranged_say_why(llama, monkeypatch):
    small = {"d_model": 16, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    encoder = T5ForConditionalGeneration(T5Config(vocab_size=32, **small))
    with pytest.raises(InputError, match="encoder"), layer_path(encoder, [0]):
        pass
    looped = linearize.retrofit(built("llama"), LoopSpec(prelude=1, core=2, coda=1))
    with pytest.raises(InputError, match="num_steps"), layer_path(looped, [0]):
        pass
    layer = llama.model.layers[1]
    monkeypatch.setattr(layer, "forward", layer.forward)  # what device_map does
    with pytest.raises(InputError, match="device_map"), layer_path(llama, [0]):
        pass
