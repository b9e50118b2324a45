"""Repetition penalty and no-repeat-ngram: transformers' own results, and what those cannot do."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

from linearize.decoding.repetition import NoRepeatNGram, RepetitionPenalty
from linearize.errors import UsageError

sequences = st.lists(st.integers(3, 8), min_size=2, max_size=30)


def random_scores(seed, dtype=torch.float32):
    return torch.randn(1, 1952, generator=torch.Generator().manual_seed(seed)).to(dtype) * 5


def stepwise(processor, ids, prompt, scores):
    for n in range(prompt, len(ids) + 1):
        result = processor(torch.tensor([ids[:n]]), scores)
    return result


@settings(deadline=None)
@given(
    ids=sequences,
    penalty=st.floats(0.1, 5),
    seed=st.integers(0, 99),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_repetition_penalty_over_everything_is_transformers_own(looping, ids, penalty, seed, dtype):
    scores = random_scores(seed, dtype)
    mine = stepwise(RepetitionPenalty(looping[1], penalty=penalty, scope="all"), ids, 1, scores)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([ids]), scores)
    assert torch.equal(mine, theirs)


@settings(deadline=None)
@given(ids=sequences, size=st.integers(1, 5), seed=st.integers(0, 99))
def test_no_repeat_ngram_over_everything_is_transformers_own(looping, ids, size, seed):
    scores = random_scores(seed)
    mine = stepwise(NoRepeatNGram(looping[1], size=size, scope="all"), ids, 1, scores)
    theirs = NoRepeatNGramLogitsProcessor(size)(torch.tensor([ids]), scores.clone())
    assert torch.equal(mine, theirs)


@settings(deadline=None)
@given(ids=sequences, data=st.data(), window=st.integers(0, 6))
def test_scope_and_window_say_what_counts(looping, ids, data, window):
    prompt = data.draw(st.integers(1, len(ids)))
    scores = random_scores(1)
    for scope, counted in [("output", ids[prompt:]), ("prompt", ids[:prompt]), ("all", ids)]:
        remedy = RepetitionPenalty(looping[1], penalty=2.0, scope=scope, window=window)
        out = stepwise(remedy, ids, prompt, scores)
        lowered = (out != scores)[0].nonzero().flatten().tolist()
        assert lowered == sorted(set(counted[-window:] if window else counted))


@settings(deadline=None)
@given(ids=sequences, data=st.data(), size=st.integers(1, 3))
def test_ngrams_of_a_scope(looping, ids, data, size):
    prompt = data.draw(st.integers(1, len(ids)))
    scores = random_scores(2)
    head, end = ids[:prompt], ids[len(ids) - size + 1 :]
    for scope, counted, reach in [("output", ids[prompt:], ids[prompt:]), ("prompt", head, ids)]:
        out = stepwise(NoRepeatNGram(looping[1], size=size, scope=scope), ids, prompt, scores)
        grams = [counted[i : i + size] for i in range(len(counted) - size + 1)]
        banned = {g[-1] for g in grams if g[:-1] == end} if len(reach) >= size else set()
        assert set((out == -torch.inf)[0].nonzero().flatten().tolist()) == banned


def test_exempt_strings_may_repeat(looping):
    _, tokenizer, _ = looping
    ids = tokenizer("x = foo(1)\nx = foo(1)\nx = foo(1").input_ids
    close = tokenizer.convert_tokens_to_ids(")")
    scores = torch.zeros(1, 1952)

    def banned(exempt):
        remedy = NoRepeatNGram(tokenizer, size=3, scope="all", exempt=exempt)
        return (remedy(torch.tensor([ids]), scores) < 0).nonzero()[:, 1].tolist()

    assert banned(()) == [close]
    assert banned(["1)"]) == []  # the n-gram contains it
    assert banned(["x = foo(1)"]) == []  # the n-gram is part of it
    assert banned("import") == [close]


def test_not_everything_is_forbidden(looping):
    scores = torch.full((1, 1952), -torch.inf)
    scores[0, 5] = scores[0, 6] = 1.0
    remedy = NoRepeatNGram(looping[1], size=1, scope="all")
    assert remedy(torch.tensor([[4, 5, 6]]), scores) is scores
    assert remedy(torch.tensor([[4, 7, 6]]), scores)[0].isfinite().nonzero().tolist() == [[5]]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda t: RepetitionPenalty(t, penalty=0), "penalty=0 is not a number above 0"),
        (lambda t: RepetitionPenalty(t, window=-1), "window=-1 is negative"),
        (lambda t: RepetitionPenalty(t, scope="promt"), "did you mean 'prompt'"),
        (lambda t: NoRepeatNGram(t, size=-1), "size=-1 is negative"),
        (lambda t: NoRepeatNGram(t, scope="everything"), "no scope 'everything'"),
        (lambda t: NoRepeatNGram(t, exempt=[""]), "exempt string is empty"),
    ],
)
def test_values_out_of_range(looping, make, words):
    with pytest.raises(UsageError, match=words):
        make(looping[1])
