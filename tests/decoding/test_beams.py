"""Beam search through the same door: transformers' own result, alone or in a batch."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding import generate
from linearize.errors import UsageError

PROMPTS = ["Once upon a time", "Tom and his dog went to the", "One day, a big bird saw a fish. The"]


@pytest.fixture(scope="module")
def pair(shared):
    path = shared / "data" / "models" / "stories260K"
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


def test_the_beams_are_transformers_own(pair):
    model, tokenizer = pair
    inputs = tokenizer(PROMPTS[0], return_tensors="pt")
    asked = {"num_beams": 4, "length_penalty": 0.5, "early_stopping": True}
    theirs = model.generate(**inputs, max_new_tokens=30, num_return_sequences=3, **asked)
    mine = generate(
        model, tokenizer, PROMPTS[0], sampler="beam", max_new_tokens=30, num_return=3, **asked
    )
    assert [r.ids for r in mine] == theirs[:, inputs.input_ids.shape[1] :].tolist()
    assert [r.prompt for r in mine] == [0, 0, 0]
    assert len({r.text for r in mine}) == 3


def test_a_prompt_gets_the_same_beams_alone_and_in_any_batch(pair):
    asked = {"sampler": "beam", "num_beams": 3, "num_return": 2, "max_new_tokens": 25}
    together = generate(*pair, PROMPTS, batch_size=9, **asked)
    twos = generate(*pair, PROMPTS, batch_size=6, **asked)
    alone = [r for p in PROMPTS for r in generate(*pair, p, **asked)]
    assert [r.prompt for r in together] == [0, 0, 1, 1, 2, 2]
    assert [r.ids for r in together] == [r.ids for r in twos] == [r.ids for r in alone]


def test_a_stop_string_ends_a_beam_like_an_end_token(pair):
    model, tokenizer = pair
    asked = {"sampler": "beam", "num_beams": 3, "max_new_tokens": 60}
    results = generate(model, tokenizer, PROMPTS, stop=[".", "Lily"], **asked)
    assert {r.finish_reason for r in results} == {"stop"}
    for result in results:
        assert "." not in result.text
        read = tokenizer.decode(result.ids)
        assert read.rstrip().endswith((".", "Lily"))
        assert len(result.ids) < 60


def test_the_text_comes_at_the_end_in_one_piece(pair):
    pieces = []
    result = generate(*pair, PROMPTS[0], sampler="beam", max_new_tokens=20, on_text=pieces.append)
    assert "".join(pieces) == result[0].text
    with pytest.raises(UsageError, match="streamed for one result, not for 2"):
        generate(*pair, PROMPTS[0], sampler="beam", num_return=2, on_text=pieces.append)


def test_an_end_token_ends_a_beam(pair):
    model, tokenizer = pair
    stored = model.generation_config.eos_token_id
    model.generation_config.eos_token_id = tokenizer("a.").input_ids[-1]
    try:
        results = generate(model, tokenizer, PROMPTS, sampler="beam", max_new_tokens=60)
    finally:
        model.generation_config.eos_token_id = stored
    assert {r.finish_reason for r in results} == {"eos"}
    assert all(r.ids[-1] == tokenizer("a.").input_ids[-1] for r in results)


def test_more_beams_find_a_text_at_least_as_likely(pair):
    model, tokenizer = pair

    def score(ids):
        prompt = tokenizer(PROMPTS[1]).input_ids
        with torch.no_grad():
            logits = model(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        return sum(logits[len(prompt) - 1 + i, t].item() for i, t in enumerate(ids))

    greedy = generate(model, tokenizer, PROMPTS[1], max_new_tokens=20)[0]
    beams = generate(model, tokenizer, PROMPTS[1], sampler="beam", num_beams=8, max_new_tokens=20)[
        0
    ]
    assert score(beams.ids) > score(greedy.ids)
