"""Logits that broke end their own row only, and what came before is kept."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding import generate
from linearize.decoding.finite import Finite


@pytest.fixture
def pair(shared):
    folder = shared / "golden" / "anti_repetition"
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny_llama")  # head and words untied
    return model, AutoTokenizer.from_pretrained(folder / "tokenizer")


PROMPTS = ["def add(a, b):\n    return a", "for i in range(10):\n", "class A:"]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("options", [{}, {"sampler": "sample", "seed": 3}], ids=str)
def test_the_row_ends_and_the_others_go_on(pair, value, options):
    model, tokenizer = pair
    free = generate(model, tokenizer, PROMPTS, max_new_tokens=12, **options)
    read = [t for ids in tokenizer(PROMPTS).input_ids for t in ids]
    others = {*read, *free[0].ids, *free[2].ids}
    at, poison = next((i, t) for i, t in enumerate(free[1].ids) if t not in others)
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = value  # breaks whoever reads this token
    pieces = []
    alone = generate(
        model, tokenizer, PROMPTS[1], max_new_tokens=12, on_text=pieces.append, **options
    )[0]
    results = generate(model, tokenizer, PROMPTS, max_new_tokens=12, **options)
    for broken in (results[1], alone):
        assert broken.finish_reason == "nan"
        assert broken.ids == free[1].ids[: at + 1]
    assert "".join(pieces) == alone.text
    for before, after in zip([free[0], free[2]], [results[0], results[2]], strict=True):
        assert (after.ids, after.finish_reason) == (before.ids, before.finish_reason)


def test_a_search_keeps_what_it_had_when_the_logits_broke(pair):
    model, tokenizer = pair
    with torch.no_grad():
        model.lm_head.weight[5] = torch.nan
    results = generate(model, tokenizer, PROMPTS, sampler="beam", num_return=2, max_new_tokens=5)
    assert [(r.ids, r.text, r.finish_reason) for r in results] == [([], "", "nan")] * 6


def test_a_search_ends_for_the_prompt_that_broke_and_goes_on_for_the_others(pair):
    model, tokenizer = pair
    asked = {"sampler": "beam", "num_beams": 2, "max_new_tokens": 8}
    free = generate(model, tokenizer, PROMPTS[:2], **asked)
    poison = tokenizer(PROMPTS[0]).input_ids[-1]
    assert poison not in [*free[1].ids, *tokenizer(PROMPTS[1]).input_ids]
    with torch.no_grad():
        model.get_input_embeddings().weight[poison] = torch.nan
    results = generate(model, tokenizer, PROMPTS[:2], **asked)
    assert (results[0].ids, results[0].finish_reason) == ([], "nan")
    assert results[1].ids == free[1].ids


def test_only_rows_without_a_choice_are_touched():
    scores = torch.randn(5, 7)
    scores[1, 2] = torch.nan
    scores[2] = -torch.inf
    scores[3, :6] = -torch.inf  # one token left is a choice
    scores[4, 0] = torch.inf
    told = []
    found = Finite(lambda row, ids: told.append((row, ids)))(torch.zeros(5, 3).long(), scores)
    assert told == [(1, 3), (2, 3), (4, 3)]
    assert torch.equal(found[[0, 3]], scores[[0, 3]])
    torch.testing.assert_close(found[[1, 2, 4]].softmax(-1), torch.full((3, 7), 1 / 7))
    fine = scores[[0, 3]]
    assert Finite(print)(torch.zeros(2, 3).long(), fine) is fine
