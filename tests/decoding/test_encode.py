"""Prompts that a model cannot read are refused with numbers and a remedy; cutting keeps the end."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from linearize.decoding import generate
from linearize.decoding.encode import encode, positions
from linearize.errors import InputError, UsageError


@pytest.fixture(scope="module")
def pair(shared):
    path = shared / "data" / "models" / "stories260K"  # 512 rotary positions, 512 tokens
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def learned_table():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_positions=32, n_embd=8, n_layer=1, n_head=2)
    )


def recurrent():
    return MambaForCausalLM(
        MambaConfig(vocab_size=512, hidden_size=8, num_hidden_layers=1, state_size=2)
    )


def sliding():
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    config = MistralConfig(
        vocab_size=512, max_position_embeddings=32, sliding_window=8, **sizes, **heads
    )
    config.layer_types = ["sliding_attention"]
    return MistralForCausalLM(config)


def test_what_a_model_was_made_for(pair):
    assert positions(pair[0]) == (512, False)
    assert positions(learned_table()) == (32, True)
    assert positions(recurrent()) == (None, False)
    assert positions(sliding()) == (None, False)


def test_a_prompt_beyond_the_positions_is_refused_with_both_numbers(pair):
    model, tokenizer = pair
    ids = [1, *[300] * 512]
    with pytest.raises(InputError, match="has 513 tokens, and this llama model has 512 positions"):
        encode(model, tokenizer, ids, max_new_tokens=1)
    assert encode(model, tokenizer, ids[:512], max_new_tokens=100) == ids[:512]
    assert len(encode(sliding(), tokenizer, ids, max_new_tokens=100)) == 513
    with pytest.raises(InputError, match="together are 33 tokens"):
        encode(learned_table(), tokenizer, ids[:20], max_new_tokens=13)
    assert len(encode(learned_table(), tokenizer, ids[:20], max_new_tokens=12)) == 20


def test_cutting_keeps_the_beginning_token_and_the_end(pair):
    model, tokenizer = pair
    ids = [1, *range(3, 510), *range(3, 100)]
    kept = encode(model, tokenizer, ids, max_new_tokens=12, truncate="left")
    assert kept == [1, *ids[-499:]]
    kept = encode(model, tokenizer, ids[1:], max_new_tokens=12, truncate="left")
    assert kept == ids[-500:]
    assert encode(model, tokenizer, ids[:90], max_new_tokens=12, truncate="left") == ids[:90]
    with pytest.raises(UsageError, match="leaves no room for a prompt in 512 positions"):
        encode(model, tokenizer, ids, max_new_tokens=511, truncate="left")
    with pytest.raises(UsageError, match="the only way is 'left'"):
        encode(model, tokenizer, ids, max_new_tokens=1, truncate="right")
    whole = generate(model, tokenizer, [ids], max_new_tokens=12, truncate="left")[0]
    assert whole.prompt_tokens == 500


@pytest.mark.parametrize("token", [512, -1])
def test_ids_outside_the_vocabulary_are_named(pair, token):
    with pytest.raises(InputError, match=f"token {token} is outside .* of 512"):
        encode(*pair, [1, token], max_new_tokens=1)
    with pytest.raises(InputError, match=f"prompt 1: token {token}"):
        generate(*pair, [[1, 2], [1, token]])


def test_text_without_tokens_or_that_is_no_text(pair):
    model, tokenizer = pair
    with pytest.raises(InputError, match="character 1 of the prompt"):
        encode(model, tokenizer, "a\ud800", max_new_tokens=1)
    with pytest.raises(InputError, match="there is no tokenizer"):
        encode(model, None, "a", max_new_tokens=1)
    assert encode(model, tokenizer, "", max_new_tokens=1) == [1]
    bos, tokenizer.bos_token = tokenizer.bos_token, None
    try:
        with pytest.raises(InputError, match="the prompt is empty"):
            encode(model, tokenizer, [], max_new_tokens=1)
    finally:
        tokenizer.bos_token = bos


def test_running_past_the_last_rotary_position_is_allowed(pair, caplog):
    torch.manual_seed(0)
    result = generate(*pair, [[1, *[300] * 500]], max_new_tokens=20)[0]
    assert len(result.ids) == 20
