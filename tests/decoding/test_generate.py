"""`generate` on real models: equal to transformers' own, alone or in a batch, and honest ends."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MambaConfig,
    MambaForCausalLM,
)

from linearize.decoding import generate
from linearize.errors import InputError, UsageError

PROMPTS = [
    "Once upon a time, there was a little girl",
    "Tom and his dog",
    "One day, a big bird saw a fish in the water. The bird wanted to eat it, but the fish",
]


@pytest.fixture(scope="module", params=["stories260K", "TinyStories-656K"])
def pair(request, shared):
    path = shared / "data" / "models" / request.param
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def ids_of(results):
    return [r.ids for r in results]


def test_greedy_is_the_models_own_greedy_text(pair):
    model, tokenizer = pair
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    theirs = model.generate(**inputs, max_new_tokens=60, do_sample=False)
    mine = generate(model, tokenizer, PROMPTS[0], max_new_tokens=60)[0]
    assert mine.ids == theirs[0, inputs.input_ids.shape[1] :].tolist()
    assert mine.prompt_tokens == inputs.input_ids.shape[1]
    full = tokenizer.decode(theirs[0], skip_special_tokens=True)
    assert full.endswith(mine.text)
    assert mine.finish_reason == "length"
    assert mine.tokens_per_second == pytest.approx(60 / mine.seconds)


@pytest.mark.parametrize(
    "options", [{}, {"sampler": "sample", "temperature": 0.8, "top_k": 40}], ids=str
)
def test_a_prompt_gets_the_same_text_alone_and_in_any_batch(pair, options):
    model, tokenizer = pair
    seeds = [11, 12, 13]
    together = generate(model, tokenizer, PROMPTS, seed=seeds, max_new_tokens=40, **options)
    twos = generate(
        model, tokenizer, PROMPTS, seed=seeds, max_new_tokens=40, batch_size=2, **options
    )
    alone = [
        generate(model, tokenizer, p, seed=s, max_new_tokens=40, **options)[0]
        for p, s in zip(PROMPTS, seeds, strict=True)
    ]
    assert ids_of(together) == ids_of(twos) == ids_of(alone)
    if options:
        other = generate(model, tokenizer, PROMPTS, seed=99, max_new_tokens=40, **options)
        assert ids_of(other) != ids_of(together)


def test_several_texts_of_a_prompt_are_those_of_the_following_seeds(pair):
    asked = {"sampler": "sample", "max_new_tokens": 20}
    three = generate(*pair, PROMPTS, num_return=3, seed=[4, 20, 40], **asked)
    assert [r.prompt for r in three] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for place, result in enumerate(three):
        start = [4, 20, 40][result.prompt]
        alone = generate(*pair, PROMPTS[result.prompt], seed=start + place % 3, **asked)[0]
        assert result.ids == alone.ids
    assert len({r.text for r in three[:3]}) > 1
    with pytest.raises(UsageError, match="the same text"):
        generate(*pair, PROMPTS, num_return=2)


def test_each_row_ends_for_its_own_reason(pair):
    model, tokenizer = pair
    free = generate(model, tokenizer, PROMPTS, max_new_tokens=40)
    assert {r.finish_reason for r in free} == {"length"}
    last = next(i for i in free[1].ids[9:] if i not in free[0].ids)
    word = free[0].text.split()[4]
    stored = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = [stored, last]  # a list, as chat models have
    try:
        cut = generate(model, tokenizer, PROMPTS, max_new_tokens=40, stop=[word])
    finally:
        model.generation_config.eos_token_id = stored
    assert cut[1].finish_reason == "eos"
    assert cut[0].finish_reason == "stop"
    for before, after in zip(free, cut, strict=True):
        assert after.ids == before.ids[: len(after.ids)]
        assert before.text.startswith(after.text)
        assert (after.ids[-1] == last) == (after.finish_reason == "eos")
        assert (len(after.ids) == 40) == (after.finish_reason == "length")
        assert word not in after.text
        if after.finish_reason == "stop":
            assert before.text.startswith(after.text + word)


def test_streamed_pieces_are_the_text(pair):
    model, tokenizer = pair
    pieces = []
    result = generate(model, tokenizer, PROMPTS[0], max_new_tokens=50, on_text=pieces.append)[0]
    assert "".join(pieces) == result.text
    assert len(pieces) > 10
    with pytest.raises(UsageError, match="streamed for one result, not for 3"):
        generate(model, tokenizer, PROMPTS, on_text=pieces.append)


def test_a_tokenizer_needs_no_padding_token(pair):
    model, tokenizer = pair
    expected = ids_of(generate(model, tokenizer, PROMPTS, max_new_tokens=20))
    pad, tokenizer.pad_token = tokenizer.pad_token, None
    try:
        assert ids_of(generate(model, tokenizer, PROMPTS, max_new_tokens=20)) == expected
    finally:
        tokenizer.pad_token = pad


def test_defaults_stored_with_the_model_do_not_apply(pair):
    model, tokenizer = pair
    expected = ids_of(generate(model, tokenizer, PROMPTS, max_new_tokens=20))
    stored = model.generation_config.to_dict()
    model.generation_config.update(
        do_sample=True, temperature=3.0, top_k=5, repetition_penalty=2.0, num_beams=2
    )
    try:
        assert ids_of(generate(model, tokenizer, PROMPTS, max_new_tokens=20)) == expected
    finally:
        model.generation_config = type(model.generation_config)(**stored)


def test_dropout_is_off_while_decoding_and_back_on_after(pair):
    model, tokenizer = pair
    model.train()
    try:
        generate(model, tokenizer, PROMPTS[0], max_new_tokens=2)
        assert model.training
    finally:
        model.eval()


def tiny_gpt2():
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=512, n_positions=32, n_embd=16, n_layer=1, n_head=2)
    )


def tiny_mamba():
    return MambaForCausalLM(
        MambaConfig(vocab_size=512, hidden_size=16, num_hidden_layers=1, state_size=4)
    )


@pytest.mark.parametrize("build", [tiny_gpt2, tiny_mamba])
def test_other_families_decode_too(shared, build):
    tokenizer = AutoTokenizer.from_pretrained(shared / "data" / "models" / "stories260K")
    torch.manual_seed(0)
    model = build().eval()
    model.generation_config.eos_token_id = None
    prompts = [[1, 403, 407], [1, 261, 376, 298, 315]]
    results = generate(model, tokenizer, prompts, max_new_tokens=10)
    alone = [generate(model, tokenizer, [p], max_new_tokens=10)[0] for p in prompts]
    assert ids_of(results) == ids_of(alone)


def test_what_cannot_be_decoded_is_said_in_one_line(pair, shared):
    model, tokenizer = pair
    with pytest.raises(UsageError, match="max_new_tokens=0 is below 1"):
        generate(model, tokenizer, "a", max_new_tokens=0)
    with pytest.raises(UsageError, match="2 seeds for 1 prompts"):
        generate(model, tokenizer, "a", seed=[1, 2])
    with pytest.raises(UsageError, match="a stop string is empty"):
        generate(model, tokenizer, "a", stop=[""])
    with pytest.raises(UsageError, match="no option 'temperature'"):
        generate(model, tokenizer, "a", temperature=0.5)
    with pytest.raises(InputError, match="has 32 positions; shorten the prompt"):
        generate(tiny_gpt2(), tokenizer, "a", max_new_tokens=40)
    assert generate(model, tokenizer, [[]], max_new_tokens=1)[0].prompt_tokens == 1
    bos, tokenizer.bos_token = tokenizer.bos_token, None
    try:
        with pytest.raises(InputError, match="has no tokens"):
            generate(model, tokenizer, [[]])
    finally:
        tokenizer.bos_token = bos
