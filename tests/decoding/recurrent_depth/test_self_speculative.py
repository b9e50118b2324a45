"""Self-speculation: the released runs, plain greedy text, the verifier's distribution, batches."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looped_batches import PROMPTS, batch, new
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from linearize.decoding.finite import Finite
from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.request import Request
from linearize.decoding.recurrent_depth.speculative import self_speculative
from linearize.decoding.repetition import RepetitionPenalty
from linearize.errors import CheckError, UsageError
from linearize.recurrent_depth.config import RavenConfig
from linearize.recurrent_depth.model import RavenForCausalLM

MODELS = ["random_121", "random_242", "trained_242"]


@pytest.mark.parametrize("index", range(16))
def test_recorded_runs(looped, index):
    run = looped.runs("trained_242/speculative")[index]
    options = run["settings"]
    mine = self_speculative(
        looped.model("trained_242"),
        Request(torch.tensor([run["prompt_ids"]]), run["max_new_tokens"]),
        num_steps=run["num_steps"],
        draft_steps=options["draft_steps"],
        lookahead=options["lookahead_for_draft"],
        accept_threshold=options.get("verification_threshold", 1.0),
        cache_budget=run["strategy"],
        compat="reference",
    )
    assert mine.ids[0].tolist() == run["tokens"]
    assert mine.spent.core_passes == run["total_core_calls"]
    assert mine.spent.core_tokens == run["core_token_passes"]
    for round_, theirs in zip(mine.spent.rounds, run["rounds"], strict=True):
        agree = [a == b for a, b in zip(round_.drafted, theirs["accepted"], strict=False)]
        assert round_.drafted == theirs["drafted"]
        assert round_.gained == theirs["accepted"]
        assert round_.accepted == sum(agree)
        assert (round_.core_passes, round_.cached) == (theirs["core_calls"], theirs["cache_len"])


@pytest.fixture(scope="module")
def plain(looped):
    """(model name, recurrences) -> new tokens of every prompt by plain decoding."""
    known = {}

    def of(name, steps):
        if (name, steps) not in known:
            run = autoregressive(looped.model(name), batch(PROMPTS, 14), num_steps=steps)
            known[name, steps] = new(run, PROMPTS)
        return known[name, steps]

    return of


@given(
    name=st.sampled_from(MODELS),
    steps=st.sampled_from([4, 9]),
    draft_steps=st.integers(1, 3),
    lookahead=st.integers(1, 6),
    length=st.integers(1, 14),
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True),
)
@settings(max_examples=12, deadline=None)
def test_greedy_text_is_plain_text(
    looped, plain, name, steps, draft_steps, lookahead, length, rows
):
    texts = [PROMPTS[row] for row in rows]
    run = self_speculative(
        looped.model(name),
        batch(texts, length),
        num_steps=steps,
        draft_steps=draft_steps,
        lookahead=lookahead,
    )
    assert new(run, texts) == [plain(name, steps)[row][:length] for row in rows]
    for row in range(len(rows)):
        own = [r for r in run.spent.rounds if r.row == row]
        assert sum(len(r.gained) for r in own) == length - 1  # the first is the prompt's
        assert all(len(r.gained) == r.accepted + 1 for r in own)


@pytest.mark.parametrize("index", range(0, 12, 2))
def test_fewer_passes_than_the_released_rounds(looped, index):
    run = looped.runs("trained_242/speculative")[index]
    options = run["settings"]
    mine = self_speculative(
        looped.model("trained_242"),
        Request(torch.tensor([run["prompt_ids"]]), run["max_new_tokens"]),
        num_steps=run["num_steps"],
        draft_steps=options["draft_steps"],
        lookahead=options["lookahead_for_draft"],
    )
    assert mine.spent.core_passes < run["total_core_calls"]


def test_rows_end_at_once_and_by_themselves(looped, plain):
    free = plain("trained_242", 9)
    end = free[0][3]
    request = batch(PROMPTS, 14, eos_token_id=end, pad_token_id=1)
    run = self_speculative(looped.model("trained_242"), request, num_steps=9)
    lengths = [row.index(end) + 1 if end in row else 14 for row in free]
    assert len(set(lengths)) > 1
    wanted = [row[:n] + [1] * (max(lengths) - n) for row, n in zip(free, lengths, strict=True)]
    assert new(run, PROMPTS) == wanted


def test_criteria_see_every_column_once_and_cut_accepted_tokens(looped, plain):
    seen, start = [], max(map(len, PROMPTS))

    def criteria(ids, scores):
        seen.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= start + 2, False, False])

    request = batch(PROMPTS, 8, stopping_criteria=criteria, pad_token_id=1)
    run = self_speculative(looped.model("trained_242"), request, num_steps=9)
    rows = [row[:8] for row in plain("trained_242", 9)]
    rows[0][2:] = [1] * 6
    assert new(run, PROMPTS) == rows
    assert seen == list(range(start + 1, start + 9))


class Counts(LogitsProcessor):
    """Remembers which texts it was asked about."""

    def __init__(self):
        self.asked = []

    def __call__(self, ids, logits):
        self.asked += ids.tolist()
        return logits


def test_processors_see_each_final_text_once_and_in_order(looped):
    model, counts = looped.model("random_121"), Counts()
    request = batch(PROMPTS[:1], 10, logits_processor=counts)
    run = self_speculative(model, request, num_steps=9, draft_steps=1)
    start = len(PROMPTS[0])
    assert any(r.accepted < len(r.drafted) for r in run.spent.rounds)  # some were rejected
    assert counts.asked == [run.ids[0, :n].tolist() for n in range(start, start + 10)]


def test_remedies_apply_to_rows_of_different_length_as_in_plain_decoding(looped):
    model, told = looped.model("trained_242"), {}

    def request(heard):
        penalty = RepetitionPenalty(None, pad_token_id=97, penalty=4.0)
        penalty.on_penalty = lambda p: heard.append((p.row, p.position, p.tokens))
        return batch(PROMPTS, 10, logits_processor=LogitsProcessorList([penalty]))

    runs = {}
    for decode in (autoregressive, self_speculative):
        told[decode] = []
        runs[decode] = decode(model, request(told[decode]), num_steps=9)
    first, second = runs.values()
    assert first.ids.equal(second.ids)
    assert not first.ids.equal(autoregressive(model, batch(PROMPTS, 10), num_steps=9).ids)

    assert sorted(told[autoregressive]) == sorted(told[self_speculative])
    rounds = runs[self_speculative].spent.rounds  # drafts follow the remedy too
    assert sum(r.accepted for r in rounds) > 0.8 * sum(len(r.drafted) for r in rounds)


V, SPREAD = 5, 6.0


@pytest.fixture(scope="module")
def tiny():
    """A looped model over five tokens whose drafts are quite unlike its last word."""
    torch.manual_seed(3)
    config = RavenConfig(
        vocab_size=V,
        n_embd=16,
        n_heads=2,
        intermediate_size=24,
        n_layers_in_prelude=1,
        n_layers_in_recurrent_block=1,
        n_layers_in_coda=1,
        block_size=32,
        mean_recurrence=6,
        mean_backprop_depth=2,
    )
    model = RavenForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(SPREAD)
    return model


def distribution(model, steps, temperature):
    """[V, V, V] probability of each continuation of the prompt 0, 1 by three tokens."""
    joint = torch.ones(V, V, V, dtype=torch.float64)
    with torch.no_grad():
        for a, b in itertools.product(range(V), repeat=2):
            out = model(torch.tensor([[0, 1, a, b]]), num_steps=steps, use_cache=False).logits
            p = (out[0, 1:].double() / temperature).softmax(-1)
            joint[a, b] = p[0, a] * p[1, b] * p[2]
    return joint


def chi_square(counts, probs):
    wanted = probs.flatten() * counts.sum()
    enough = wanted >= 5  # rare continuations together
    seen = torch.cat([counts.flatten()[enough], counts.flatten()[~enough].sum()[None]])
    wanted = torch.cat([wanted[enough], wanted[~enough].sum()[None]])
    value = ((seen - wanted) ** 2 / wanted).sum().item()
    return value, len(wanted) - 1


def test_drawn_tokens_follow_the_verifiers_distribution(tiny):
    count, temperature = 3000, 0.8
    request = Request(
        torch.tensor([[0, 1]]).repeat(count, 1),
        3,
        warpers=TemperatureLogitsWarper(temperature),
        generators=[torch.Generator().manual_seed(seed) for seed in range(count)],
    )
    run = self_speculative(tiny, request, num_steps=6, draft_steps=1, lookahead=2)
    counts = torch.zeros(V, V, V, dtype=torch.float64)
    counts.index_put_(tuple(run.ids[:, 2:].T), torch.ones(count, dtype=torch.float64), True)
    verifier = distribution(tiny, 6, temperature)
    value, freedom = chi_square(counts, verifier)
    five_sigma = freedom + 5 * (2 * freedom) ** 0.5
    assert value < five_sigma
    # It is a test only if drafts are something else and many of them are taken.
    drafts = distribution(tiny, 1, temperature)
    assert (drafts - verifier).abs().sum() / 2 > 0.2
    assert chi_square(counts, drafts)[0] > 3 * five_sigma
    drafted = sum(len(r.drafted) for r in run.spent.rounds)
    accepted = sum(r.accepted for r in run.spent.rounds)
    assert 0.3 < accepted / drafted < 0.95


def test_drawn_text_of_a_row_does_not_depend_on_its_neighbours(looped):
    model = looped.model("trained_242")

    def run(rows):
        texts = [PROMPTS[row] for row in rows]
        request = batch(
            texts,
            8,
            warpers=TemperatureLogitsWarper(1.5),
            generators=[torch.Generator().manual_seed(row) for row in rows],
        )
        return new(self_speculative(model, request, num_steps=6, draft_steps=1), texts)

    together = run([0, 1, 2])
    assert together == [run([row])[0] for row in range(3)]
    assert together == run([0, 1, 2])


def test_a_lower_threshold_accepts_more(looped):
    model, request = looped.model("random_121"), batch(PROMPTS, 12)
    runs = [
        self_speculative(model, request, num_steps=6, draft_steps=1, accept_threshold=t)
        for t in (1.0, 0.2)
    ]
    strict, loose = (sum(r.accepted for r in run.spent.rounds) for run in runs)
    assert loose > strict
    assert runs[1].ids.shape == runs[0].ids.shape


class Breaks(LogitsProcessor):
    def __call__(self, ids, logits):
        return logits * float("nan") if ids.shape[1] == 24 else logits


def test_logits_that_are_not_numbers_are_told(looped):
    model = looped.model("trained_242")
    with pytest.raises(CheckError, match="row 0: the logits after 24 ids"):
        self_speculative(model, batch(PROMPTS[2:], 6, logits_processor=Breaks()), num_steps=5)
    found = []
    own = LogitsProcessorList([Breaks(), Finite(lambda row, ids: found.append((row, ids)))])
    self_speculative(model, batch(PROMPTS, 6, logits_processor=own), num_steps=5)
    assert sorted(found) == [(0, 24), (1, 24), (2, 24)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": 4}, "draft_steps=4 must be below num_steps=4"),
        ({"draft_steps": 9}, "draft_steps=9 must be below num_steps=8"),
        ({"draft_steps": 0}, "draft_steps=0 is out of range"),
        ({"num_steps": 5000}, "num_steps=5000 is out of range"),
        ({"lookahead": 0}, "lookahead=0"),
        ({"accept_threshold": 0.0}, "accept_threshold=0.0"),
        ({"accept_threshold": 1.5}, "accept_threshold=1.5"),
        ({"compat": "reference"}, "one row"),
        ({"compat": "paper"}, "compat='paper'"),
    ],
)
def test_bad_settings(looped, options, message):
    with pytest.raises(UsageError, match=message):
        self_speculative(looped.model("trained_242"), batch(PROMPTS, 2), **options)


def test_a_share_of_the_top_probability_cannot_be_drawn(looped):
    request = batch(PROMPTS[:1], 2, generators=[torch.Generator()])
    with pytest.raises(UsageError, match=r"accept_threshold=0.5 .* not drawing"):
        self_speculative(looped.model("trained_242"), request, accept_threshold=0.5)
