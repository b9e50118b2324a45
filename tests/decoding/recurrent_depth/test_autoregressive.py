"""Plain decoding of looped models: the released runs, the model's own `generate`, batches."""

import pytest
import torch
from looped_batches import PROMPTS, batch, new, padded
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper

from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.request import Request
from linearize.decoding.repetition import RepetitionPenalty
from linearize.errors import CheckError, UsageError

RECORDED = [("trained_242", i) for i in range(10)] + [("random_242", 0)]


@pytest.mark.parametrize(("name", "index"), RECORDED)
def test_recorded_runs(looped, name, index):
    run = looped.runs(f"{name}/ar")[index]
    prompt, r = torch.tensor([run["prompt_ids"]]), run["num_steps"]
    length = 16 if r <= 8 else 8
    mine = autoregressive(
        looped.model(name),
        Request(prompt, length),
        num_steps=r,
        cache_budget=run["strategy"],
        init_scale=run["init_scale"],
        continuous_compute=run.get("continuous_compute", False),
        compat="reference",
    )
    assert mine.ids[0].tolist() == run["tokens"][: prompt.shape[1] + length]
    assert mine.spent.core_passes == run["core_calls"] * length // run["max_new_tokens"]
    assert mine.spent.steps == [[r] * length]


@pytest.mark.parametrize("name", ["random_121", "random_242", "trained_242"])
def test_equal_to_the_models_own_generate(looped, name):
    model = looped.model(name)
    ids, mask = padded(PROMPTS)
    theirs = model.generate(
        ids, attention_mask=mask, max_new_tokens=8, do_sample=False, num_steps=5, pad_token_id=97
    )
    assert autoregressive(model, batch(PROMPTS, 8), num_steps=5).ids.equal(theirs)


@pytest.mark.parametrize("settings", [{}, {"cache_budget": 1}, {"init_scale": 1.0}], ids=str)
@pytest.mark.parametrize("drawn", [False, True])
def test_rows_are_the_same_alone_and_in_a_batch(looped, settings, drawn):
    model = looped.model("random_242")

    def run(rows):
        texts, seeds = [PROMPTS[row] for row in rows], [7 + row for row in rows]
        chosen = {"warpers": TemperatureLogitsWarper(0.5)} if drawn else {}
        request = batch(texts, 8, **chosen)
        request = request.seeded(seeds) if drawn else request
        return new(autoregressive(model, request, num_steps=4, seeds=seeds, **settings), texts)

    assert run([0, 1, 2]) == [run([row])[0] for row in range(3)]


def test_rows_end_by_themselves_and_leave_the_model(looped):
    model = looped.model("trained_242")
    free = new(autoregressive(model, batch(PROMPTS, 16), num_steps=4), PROMPTS)
    end = free[0][3]
    mine = autoregressive(
        model, batch(PROMPTS, 16, eos_token_id=[end], pad_token_id=1), num_steps=4
    )
    lengths = [row.index(end) + 1 if end in row else 16 for row in free]
    assert len(set(lengths)) > 1
    width = max(lengths)
    wanted = [row[:n] + [1] * (width - n) for row, n in zip(free, lengths, strict=True)]
    assert new(mine, PROMPTS) == wanted
    prompt = sum(map(len, PROMPTS))
    assert mine.spent.core_tokens == 4 * (prompt + sum(n - 1 for n in lengths))
    assert [len(steps) for steps in mine.spent.steps] == lengths


def test_criteria_see_every_column_once_and_end_rows(looped):
    model, seen = looped.model("trained_242"), []

    def criteria(ids, scores):
        seen.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= 23, ids.shape[1] >= 25, False])

    mine = autoregressive(
        model, batch(PROMPTS, 6, stopping_criteria=criteria, pad_token_id=1), num_steps=2
    )
    start = max(map(len, PROMPTS))
    assert seen == list(range(start + 1, start + 7))
    rows = new(mine, PROMPTS)
    assert rows[0][23 - start :] == [1] * (start + 6 - 23)
    assert 1 not in rows[2]


def test_remedies_apply_as_in_the_models_own_generate(looped):
    model = looped.model("trained_242")
    ids, mask = padded(PROMPTS)
    own = LogitsProcessorList([RepetitionPenalty(None, pad_token_id=97, penalty=4.0)])
    theirs = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=10,
        do_sample=False,
        num_steps=4,
        pad_token_id=97,
        logits_processor=own,
    )
    own = LogitsProcessorList([RepetitionPenalty(None, pad_token_id=97, penalty=4.0)])
    request = batch(PROMPTS, 10, logits_processor=own)
    mine = autoregressive(model, request, num_steps=4)
    assert mine.ids.equal(theirs)
    assert not mine.ids.equal(autoregressive(model, batch(PROMPTS, 10), num_steps=4).ids)


class Forbid(LogitsProcessor):
    def __call__(self, ids, logits):
        return torch.full_like(logits, -torch.inf) if ids.shape[1] > 24 else logits


def test_logits_without_a_usable_token_are_told(looped):
    model = looped.model("trained_242")
    with pytest.raises(CheckError, match="row 0: the logits after 25 ids"):
        autoregressive(model, batch(PROMPTS, 8, logits_processor=Forbid()), num_steps=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_steps": 0}, "num_steps=0 is out of range"),
        ({"num_steps": 4097}, "num_steps=4097 is out of range"),
        ({"num_steps": 2.5}, "num_steps=2.5 is not a whole number"),
        ({"init_scale": float("nan")}, "init_scale=nan"),
        ({"compat": "paper"}, "compat='paper'"),
        ({"cache_budget": "compress"}, "cache sharing 'compress'"),
    ],
)
def test_bad_settings(looped, settings, message):
    with pytest.raises(UsageError, match=message):
        autoregressive(looped.model("trained_242"), batch(PROMPTS, 2), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"attention_mask": torch.tensor([[1, 1, 0]])}, "padded on the left"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "padded on the left"),
        ({"attention_mask": torch.ones(1, 2)}, "must have the shape"),
        ({"generators": []}, "0 generators for 1 rows"),
    ],
)
def test_bad_requests(settings, message):
    with pytest.raises(UsageError, match=message):
        Request(torch.tensor([[1, 2, 3]]), **{"max_new_tokens": 4, **settings})


def test_a_model_that_is_not_looped_is_refused():
    with pytest.raises(UsageError, match="'autoregressive' needs a looped model"):
        autoregressive(torch.nn.Linear(1, 1), batch(PROMPTS, 2))
