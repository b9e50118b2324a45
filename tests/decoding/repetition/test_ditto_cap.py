"""ditto-cap: what it records, the closed form of the cap, and loops it ends."""

import math
from itertools import pairwise

import pytest
import torch

from linearize.decoding.repetition import DittoCap
from linearize.errors import UsageError

SIZE = 1952


def logits(token, probability):
    """Random logits in which `token` has the given probability."""
    scores = torch.randn(SIZE, generator=torch.Generator().manual_seed(token))
    scores[token] = -torch.inf
    scores[token] = scores.logsumexp(-1) + math.log(probability / (1 - probability))
    return scores[None]


class Reader:
    """Feeds a text token by token, as if its tokens had been generated."""

    def __init__(self, tokenizer, prompt="", **options):
        self.tokenizer = tokenizer
        self.cap = DittoCap(tokenizer, **options)
        self.ids = tokenizer(prompt).input_ids

    def say(self, text, probability):
        """Every next token had `probability`; returns what became of it, one float per token."""
        seen = []
        for token in self.tokenizer(text, add_special_tokens=False).input_ids:
            raw = logits(token, probability)
            out = self.cap(torch.tensor([self.ids]), raw)
            others = torch.arange(SIZE) != token
            assert torch.equal(out[0, others], raw[0, others])
            seen.append(out.softmax(-1)[0, token].item())
            self.ids.append(token)
        return seen


def test_the_cap_falls_with_every_copy(looping):
    reader = Reader(looping[1], unit="line")
    line = "x = foo(1)\n"
    assert reader.say(line, 0.3) == pytest.approx([0.3] * 9, rel=1e-5)
    assert reader.say(line, 0.6) == pytest.approx([0.6] * 9, rel=1e-5)  # the first copy: recorded
    assert reader.say(line, 0.9) == pytest.approx([0.3] * 9, rel=1e-4)  # 0.5 * 0.6
    assert reader.say(line, 0.9) == pytest.approx([0.15] * 9, rel=1e-4)
    assert reader.say(line, 0.9) == pytest.approx([0.075] * 9, rel=1e-4)
    assert reader.say(line, 0.01) == pytest.approx([0.01] * 9, rel=1e-4)  # below the cap already


def test_certainty_is_capped_too(looping):
    reader = Reader(looping[1], unit="line")
    line = "x = foo(1)\n"
    for _ in range(2):
        reader.say(line, 0.5)
    token = looping[1](line, add_special_tokens=False).input_ids[0]
    raw = torch.zeros(1, SIZE)
    raw[0, token] = 200.0  # 1 - P is zero in float32
    assert reader.cap(torch.tensor([reader.ids]), raw).softmax(-1)[0, token] == pytest.approx(0.25)


def test_a_floor_ends_the_fall(looping):
    reader = Reader(looping[1], unit="line", floor=0.1)
    for _ in range(6):
        last = reader.say("x = foo(1)\n", 0.5)
    assert last == pytest.approx([0.1] * 9, rel=1e-4)


def test_another_sentence_ends_the_run(looping):
    reader = Reader(looping[1], unit="line")
    for line in ["x = 1\n", "x = 1\n", "y = 2\n", "x = 1\n"]:
        assert reader.say(line, 0.8)[-1] == pytest.approx(0.8, rel=1e-5)
    # Leaving the copy half-way frees the rest, as far as the texts agree.
    reader.say("x = 1\n", 0.8)
    half = reader.say("x = 2", 0.8)
    assert half[:-1] == pytest.approx([0.4] * (len(half) - 1), rel=1e-4)
    assert half[-1] == pytest.approx(0.8, rel=1e-5)


def test_min_copies_waits(looping):
    reader = Reader(looping[1], unit="line", min_copies=2)
    for copy, want in enumerate([0.8, 0.8, 0.8, 0.4]):
        assert reader.say("x = 1\n", 0.8)[0] == pytest.approx(want, rel=1e-4), copy


def test_sentences_of_prose_and_lines_without_words(looping):
    tokenizer = looping[1]
    reader = Reader(tokenizer)
    assert reader.say("The list is given. The list is given.", 0.8)[-1] == pytest.approx(0.8)
    assert reader.say("The list is given.", 0.8) == pytest.approx([0.4] * 5, rel=1e-4)
    # Blanks differ, the sentence does not; the empty lines between are no sentences.
    again = reader.say("\n\n   The list is", 0.8)
    assert again[-2:] == pytest.approx([0.2] * 2, rel=1e-4)
    closing = Reader(tokenizer, unit="line")
    assert min(closing.say(")\n" * 6, 0.8)) == pytest.approx(0.8, rel=1e-5)


def test_copies_in_the_prompt_count_only_when_told(looping):
    twice = "x = foo(1)\nx = foo(1)\n"
    deaf = Reader(looping[1], prompt=twice, unit="line")
    assert deaf.say("x = foo(1)\n", 0.8) == pytest.approx([0.8] * 9, rel=1e-5)
    told = Reader(looping[1], prompt=twice, unit="line", count_prompt=True)
    # The first token of a text has a blank of its own here, so it is not the copy's.
    assert told.say("x = foo(1)\n", 0.8)[1:] == pytest.approx([0.4] * 8, rel=1e-4)
    assert told.say("x = foo(1)\n", 0.8)[1:] == pytest.approx([0.2] * 8, rel=1e-4)


def test_a_new_turn_of_a_chat_starts_over(looping):
    reader = Reader(looping[1], unit="line")
    for _ in range(3):
        capped = reader.say("x = 1\n", 0.8)
    assert capped[0] == pytest.approx(0.4, rel=1e-4)
    reader.ids.append(looping[1].eos_token_id)
    assert reader.say("x = 1\n", 0.8)[0] == pytest.approx(0.8, rel=1e-5)


def test_it_ends_a_loop_of_a_real_model(looping):
    model, tokenizer, prompts = looping
    ids = torch.tensor([prompts[0]])
    options = {"do_sample": False, "max_new_tokens": 120, "pad_token_id": 0}

    def lines(processors):
        out = model.generate(ids, logits_processor=processors, **options)[0, ids.shape[1] :]
        return tokenizer.decode(out).split("\n")[:-1]

    def most_in_a_row(found):
        runs = [1]
        for a, b in pairwise(found):
            runs.append(runs[-1] + 1 if a.strip() == b.strip() else 1)
        return max(runs)

    assert most_in_a_row(lines([])) >= 10
    assert most_in_a_row(lines([DittoCap(tokenizer, unit="line")])) <= 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"strength": 0.0}, r"strength=0 is outside \(0, 1\]"),
        ({"strength": float("nan")}, "strength=nan"),
        ({"min_copies": 0}, "min_copies=0 is below 1"),
        ({"floor": 0.0}, "floor=0 is outside"),
        ({"unit": "sentences"}, "did you mean 'sentence'"),
    ],
)
def test_values_out_of_range(looping, options, words):
    with pytest.raises(UsageError, match=words):
        DittoCap(looping[1], **options)
