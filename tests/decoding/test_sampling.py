"""Samplers: the draw itself, transformers' cuts, and options that make no sense."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from linearize.decoding import sampling
from linearize.errors import UsageError


def drawn(seeds, logits, **options):
    processor = sampling.make("sample", **options).arguments(seeds)["logits_processor"]
    scores = processor(torch.zeros(len(seeds), 1, dtype=torch.long), logits)
    assert (scores > -torch.inf).sum(-1).eq(1).all(), "a draw leaves exactly one token possible"
    return scores.argmax(-1)


@given(
    weights=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=20).filter(any),
    u=st.floats(0, 1, exclude_max=True),
)
def test_pick_is_the_inverse_of_the_cumulated_distribution(weights, u):
    probs = torch.tensor([weights])
    token = sampling.pick(probs, torch.tensor([u], dtype=torch.float64)).item()
    cdf = probs.double().cumsum(-1)[0]
    assert probs[0, token] > 0
    assert cdf[token] > u * cdf[-1]
    assert token == 0 or cdf[token - 1] <= u * cdf[-1]


def test_draws_follow_the_distribution():
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    n = 4000
    tokens = drawn(range(n), logits.expand(n, -1), temperature=0.5)
    measured = torch.bincount(tokens, minlength=4) / n
    torch.testing.assert_close(measured, (logits[0] / 0.5).softmax(-1), atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"top_k": 2}, {0, 1}),
        ({"top_p": 0.6}, {0}),
        ({"min_p": 0.2}, {0, 1}),
        ({"typical": 0.2}, {1}),  # its surprise of 1.6 is nearest to the entropy of 1.1
        ({"typical": 0.7}, {0, 1}),
        ({}, {0, 1, 2, 3}),
    ],
    ids=str,
)
def test_cuts_leave_only_the_tokens_they_should(options, allowed):
    logits = torch.tensor([[0.61, 0.2, 0.1, 0.09]]).log().expand(500, -1)
    assert set(drawn(range(500), logits, **options).tolist()) == allowed


def test_a_row_draws_the_same_alone_and_in_a_batch():
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = drawn([5, 6, 7], logits)
    alone = torch.cat([drawn([s], logits[i : i + 1]) for i, s in enumerate([5, 6, 7])])
    assert together.tolist() == alone.tolist()


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("gready", {}, "did you mean 'greedy'"),
        ("greedy", {"temperature": 0.7}, "it belongs to 'sample'"),
        ("sample", {"temprature": 0.7}, "did you mean 'temperature'"),
        ("sample", {"temperature": 0.0}, "choose the sampler 'greedy'"),
        ("sample", {"top_k": -1}, "0 keeps all"),
        ("sample", {"top_p": 0.0}, r"outside \(0, 1\]"),
        ("sample", {"min_p": 1.0}, r"outside \[0, 1\)"),
        ("sample", {"typical": 0.0}, r"outside \(0, 1\]"),
        ("beam", {"num_beams": 1}, "choose 'greedy'"),
        ("beam", {"early_stopping": "now"}, "none of true, false and never"),
        ("beam", {"temperature": 0.5}, "it belongs to 'sample'"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(name, options, says):
    with pytest.raises(UsageError, match=says):
        sampling.make(name, **options)


@pytest.mark.parametrize(
    ("name", "count", "says"),
    [
        ("greedy", 2, "the same text"),
        ("beam", 5, "more than num_beams=4"),
        ("sample", 0, "below 1"),
    ],
)
def test_several_texts_need_a_source_of_difference(name, count, says):
    with pytest.raises(UsageError, match=says):
        sampling.make(name).check_returns(count)
