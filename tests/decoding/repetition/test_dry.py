"""DRY against its definition, token by token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.decoding.repetition import DRY, vocabulary
from linearize.errors import UsageError


def breaks_at(tokenizer, ids, breakers):
    """Whether a breaker ends in each token; special tokens always break."""
    pieces, walls, text = vocabulary.of(tokenizer).pieces, [], b""
    for token in ids:
        if token in tokenizer.all_special_ids:
            walls.append(True)
            text = b""
            continue
        old, text = len(text), text + pieces[token]
        ends = (i + len(b) for b in breakers for i in range(len(text)) if text.startswith(b, i))
        walls.append(any(end > old for end in ends))
    return walls


def naive(ids, walls, *, allowed_length, reach):
    """Token -> length of the longest repeat it would prolong, straight from the definition."""
    if reach:
        ids, walls = ids[-reach:], walls[-reach:]
    found = {}
    for end in range(len(ids) - 1):
        length = 0
        while (
            length <= end
            and ids[end - length] == ids[-1 - length]
            and not walls[end - length]
            and not walls[-1 - length]
        ):
            length += 1
        if length >= allowed_length and not walls[end + 1]:
            found[ids[end + 1]] = max(found.get(ids[end + 1], 0), length)
    return found


@settings(deadline=None, max_examples=150)
@given(
    data=st.data(),
    allowed_length=st.integers(1, 4),
    reach=st.sampled_from([0, 1, 3, 7]),
    breakers=st.sampled_from([[], ["\n", ":"], ["a:", "\n"], ["\na"]]),
)
def test_the_definition(looping, data, allowed_length, reach, breakers):
    _, tokenizer, _ = looping
    few = [tokenizer.convert_tokens_to_ids(p) for p in ["a", "b", ":", "<0x0A>", "</s>"]]
    ids = data.draw(st.lists(st.sampled_from(few + few[:2] * 3), min_size=15, max_size=40))
    dry = DRY(tokenizer, allowed_length=allowed_length, range=reach, breakers=breakers)
    prompt = [tokenizer.bos_token_id]
    raw = torch.randn(1, 1952, generator=torch.Generator().manual_seed(0))
    walls = breaks_at(tokenizer, ids, [b.encode() for b in breakers])
    dry(torch.tensor([prompt]), raw)
    for n in range(1, len(ids) + 1):
        scores = dry(torch.tensor([prompt + ids[:n]]), raw)
        want = raw.clone()
        repeats = naive(ids[:n], walls[:n], allowed_length=allowed_length, reach=reach)
        for token, length in repeats.items():
            want[0, token] -= min(0.8 * 1.75 ** (length - allowed_length), 1e4)
        assert torch.equal(want != raw, scores != raw)
        torch.testing.assert_close(scores, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_endless_repeats_stay_finite(looping, dtype):
    _, tokenizer, prompts = looping
    dry = DRY(tokenizer, count_prompt=True, base=4.0, breakers=())
    token = prompts[0][2]
    scores = torch.zeros(1, 1952, dtype=dtype)
    out = dry(torch.tensor([[token] * 3000]), scores)
    assert out.isfinite().all()
    assert out.dtype == dtype
    assert out[0, token] == torch.tensor(-1e4).to(dtype)
    assert out.count_nonzero() == 1


def test_an_impossible_token_stays_impossible(looping):
    _, tokenizer, prompts = looping
    scores = torch.zeros(1, 1952)
    scores[0, prompts[0][2]] = -torch.inf
    dry = DRY(tokenizer, count_prompt=True)
    assert torch.equal(dry(torch.tensor([[prompts[0][2]] * 9]), scores), scores)


def test_the_prompt_counts_only_when_told(looping):
    _, tokenizer, prompts = looping
    scores = torch.zeros(1, 1952)
    ids = torch.tensor([[5, 6, 7, 8, 5, 6, 7]])
    assert DRY(tokenizer)(ids, scores) is scores
    assert DRY(tokenizer, count_prompt=True)(ids, scores)[0].nonzero().tolist() == [[8]]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"multiplier": -1.0}, "multiplier=-1"),
        ({"multiplier": float("nan")}, "multiplier=nan"),
        ({"base": 0.5}, "base=0.5 is below 1"),
        ({"allowed_length": 0}, "allowed_length=0 is below 1"),
        ({"range": -2}, "range=-2 is below -1"),
        ({"breakers": ["\n", ""]}, "a breaker is empty"),
    ],
)
def test_values_out_of_range(looping, options, words):
    with pytest.raises(UsageError, match=words):
        DRY(looping[1], **options)
