"""Adaptive exits: the released runs, what the default mends, rows that exit on their own."""

import math

import pytest
import torch
from looped_batches import PROMPTS, batch, new

from linearize.decoding.recurrent_depth.adaptive import adaptive
from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.exits import EXITS
from linearize.decoding.recurrent_depth.request import Request
from linearize.errors import CheckError, UsageError

NAMES = {  # what the released code calls its options
    "min_steps": ("min_steps", lambda value: value),
    "check_criterion_every_n_steps": ("check_every", lambda value: value),
    "do_not_exit_in_prefill": ("exit_in_prefill", lambda value: not value),
    "continuous_compute": ("continuous_compute", lambda value: value),
}
LOGITS = [
    name
    for name, criterion in EXITS.items()
    if criterion.reads == "logits" and not criterion.stable
]


@pytest.mark.parametrize("index", range(19))
def test_recorded_runs(looped, index):
    run = looped.runs("trained_242/adaptive")[index]
    options = dict(run.get("options", {}))
    settings = {NAMES[k][0]: NAMES[k][1](v) for k, v in options.items()}
    mine = adaptive(
        looped.model("trained_242"),
        Request(torch.tensor([run["prompt_ids"]]), run["max_new_tokens"]),
        num_steps=run["max_steps"],
        criterion=run["criterion"],
        exit_threshold=run["threshold_arg"],
        cache_budget=run["strategy"],
        compat="reference",
        **settings,
    )
    assert mine.ids[0].tolist() == run["tokens"]
    assert mine.spent.steps == [run["steps_per_token"]]
    assert mine.spent.core_passes == run["total_core_calls"]
    rel = 1e-2 if "kl" in run["criterion"] else 0
    for values, theirs in zip(mine.spent.exit_values[0], run["exit_values"], strict=True):
        wanted = [pytest.approx(v, abs=1e-4, rel=rel, nan_ok=True) for v in theirs]
        assert values == wanted


def test_a_full_cache_drops_no_tokens_that_exited_early(looped):
    """The released "full" does, and then needs more recurrences for worse text."""
    model, runs = looped.model("trained_242"), looped.runs("trained_242/adaptive")
    (plain,) = (run["tokens"] for run in runs if run["criterion"] == "none")
    for run in (run for run in runs if run["strategy"] == "full"):
        request = Request(torch.tensor([run["prompt_ids"]]), run["max_new_tokens"])
        mine = adaptive(model, request, num_steps=run["max_steps"], criterion=run["criterion"])
        assert sum(mine.spent.steps[0]) < sum(run["steps_per_token"])
        assert run["tokens"] != plain
        assert mine.ids[0].tolist() == plain


@pytest.mark.parametrize("name", sorted(LOGITS))
def test_the_first_look_at_logits_never_exits(looped, name):
    model = looped.model("trained_242")
    for min_steps in (0, 3):
        run = adaptive(
            model, batch(PROMPTS, 3), criterion=name, exit_threshold=1e6, min_steps=min_steps
        )
        assert run.spent.steps == [[max(min_steps, 1) + 1] * 3] * 3
        assert all(len(values) == 2 for row in run.spent.exit_values for values in row)


@pytest.mark.parametrize(("min_steps", "check_every"), [(0, 1), (0, 3), (4, 1), (4, 3), (7, 5)])
def test_states_compare_with_one_recurrence_before(looped, min_steps, check_every):
    """Whatever the looks: a threshold between two changes ends at the first look after it."""
    model, request = looped.model("trained_242"), batch(PROMPTS[:1], 1)
    every = adaptive(model, request, num_steps=16, exit_threshold=0.0).spent.exit_values[0][0]
    run = adaptive(
        model,
        request,
        num_steps=16,
        min_steps=min_steps,
        check_every=check_every,
        exit_threshold=0.03,
    )
    looks = [n for n in range(max(min_steps, 1), 17) if (n - min_steps) % check_every == 0]
    exit_at = next(n for n in looks if every[n - 1] < 0.03)
    assert run.spent.steps == [[exit_at]]
    wanted = [every[n - 1] for n in looks if n <= exit_at]
    assert run.spent.exit_values[0][0] == pytest.approx(wanted, abs=1e-6)


def test_without_a_criterion_it_is_plain_decoding(looped):
    model = looped.model("random_121")
    mine = adaptive(model, batch(PROMPTS, 6), num_steps=5, criterion="none")
    plain = autoregressive(model, batch(PROMPTS, 6), num_steps=5)
    assert mine.ids.equal(plain.ids)
    assert mine.spent.steps == plain.spent.steps
    assert mine.spent.core_passes == plain.spent.core_passes


@pytest.mark.parametrize("cache_budget", [None, 1, "always-last-m4", "full"], ids=str)
@pytest.mark.parametrize("name", ["latent-diff", "kl", "argmax-stability"])
def test_rows_are_the_same_alone_and_in_a_batch(looped, name, cache_budget):
    model = looped.model("trained_242")
    settings = {"criterion": name, "cache_budget": cache_budget, "num_steps": 12}
    if name == "argmax-stability":
        settings["exit_threshold"] = 2
    together = adaptive(model, batch(PROMPTS, 6), **settings)
    rows, steps = new(together, PROMPTS), together.spent.steps
    assert any(len({row[i] for row in steps}) > 1 for i in range(6))  # they differ somewhere
    for row, text in enumerate(PROMPTS):
        alone = adaptive(model, batch([text], 6), **settings)
        assert new(alone, [text])[0] == rows[row]
        assert alone.spent.steps[0] == steps[row]
        for mine, theirs in zip(
            alone.spent.exit_values[0], together.spent.exit_values[row], strict=True
        ):
            assert mine == pytest.approx(theirs, abs=2e-5, nan_ok=True)


def test_core_passes_follow_the_slowest_row_and_tokens_each_row(looped):
    run = adaptive(looped.model("trained_242"), batch(PROMPTS, 5), num_steps=12)
    steps = run.spent.steps
    assert run.spent.core_passes == sum(map(max, zip(*steps, strict=True)))
    prompt = sum(len(text) * row[0] for text, row in zip(PROMPTS, steps, strict=True))
    assert run.spent.core_tokens == prompt + sum(sum(row[1:]) for row in steps)


def test_states_that_are_not_numbers_never_converge_and_are_told(looped):
    model = looped.model("random_121")

    class Broken:
        def __getattr__(self, name):
            return getattr(model, name)

        def core_step(self, z, *args):
            return model.core_step(z, *args) * math.nan

    with pytest.raises(CheckError, match="row 0: the logits after 22 ids are NaN"):
        adaptive(Broken(), batch(PROMPTS, 4), num_steps=3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "kld"}, "no exit criterion 'kld'"),
        ({"exit_threshold": -1}, "exit_threshold=-1"),
        ({"min_steps": 8, "num_steps": 8}, "min_steps=8 is out of range: 0 to 7"),
        ({"min_steps": -1}, "min_steps=-1"),
        ({"check_every": 0}, "check_every=0"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"compat": "reference"}, "one row at a time, not 3"),
        ({"compat": "paper"}, "compat='paper'"),
    ],
)
def test_bad_settings(looped, settings, message):
    with pytest.raises(UsageError, match=message):
        adaptive(looped.model("trained_242"), batch(PROMPTS, 2), **settings)
