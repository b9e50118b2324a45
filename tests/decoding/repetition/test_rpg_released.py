"""`rpg-released` against what the public decoder computed: lexer, detectors, logits, whole runs."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.decoding.repetition import RPGReleased
from linearize.decoding.repetition.detect import repeated_end
from linearize.decoding.repetition.released_lexer import KEYWORDS
from linearize.decoding.repetition.rpg_released import EOS_TRIGGERS
from linearize.errors import UsageError


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "anti_repetition"


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


@pytest.fixture(scope="module")
def steps(folder):
    recorded = json.loads((folder / "rpg_steps.json").read_text())
    return recorded | load_file(folder / "rpg_steps.safetensors")


def test_the_tables_are_the_recorded_ones(steps):
    assert set(steps["keywords"]) == KEYWORDS
    assert set(steps["eos_trigger_strings"]) == EOS_TRIGGERS


def test_every_step_is_bitwise_the_recorded_one(steps, tokenizer):
    for index, case in enumerate(steps["cases"]):
        remedy = RPGReleased(tokenizer)
        raw = steps["raw_logits"][index : index + 1]
        ids = torch.tensor([case["ids"]])
        assert torch.equal(remedy(ids, raw)[0], steps["penalised_logits"][index]), case["name"]

        state = remedy.start(case["ids"])
        lines = [["COMMNET" if k == "COMMENT" else k for k in u] for u in state.lexer.units()]
        assert lines == case["lines"], case["name"]
        content = case["content_repetition"]
        period = state.history.period(len(case["ids"]) // 2 - 1)
        assert period == (content["period"] if content else 0)
        if content:
            assert state.history.extra_copies(period) == content["extra_copies"]
        structural = case["structural_repetition"]
        assert repeated_end(lines) == (structural["units"] if structural else 0)
        events = {str(token): copies for token, (copies, _) in remedy.events(state).items()}
        assert list(events.items()) == list(case["penalised"].items()), case["name"]


def test_a_prefix_read_token_by_token_is_the_same(steps, tokenizer):
    remedy = RPGReleased(tokenizer)
    for index, case in enumerate(steps["cases"]):
        ids, raw = torch.tensor([case["ids"]]), steps["raw_logits"][index : index + 1]
        remedy.reset()
        for length in range(5, ids.shape[1] + 1):
            penalised = remedy(ids[:, :length], raw)
        assert torch.equal(penalised[0], steps["penalised_logits"][index]), case["name"]


def test_the_structural_detector(folder):
    for case in json.loads((folder / "rpg_detector.json").read_text()):
        m = repeated_end(case["seq"][::-1])  # recorded on reversed lists
        assert case["seq"][:m] == case["repeated_prefix"], case["seq"]


def test_whole_runs_alone_and_in_a_batch(folder, tokenizer):
    model = AutoModelForCausalLM.from_pretrained(folder / "tiny_llama")
    runs = json.loads((folder / "rpg_greedy.json").read_text())
    remedy = RPGReleased(tokenizer, pad_token_id=0)
    options = {"do_sample": False, "max_new_tokens": 48, "pad_token_id": 0}
    for run in runs:
        ids = torch.tensor([run["prompt_ids"]])
        out = model.generate(ids, logits_processor=[remedy], **options)
        assert out[0, ids.shape[1] :].tolist() == run["rpg"]
    longest = max(len(run["prompt_ids"]) for run in runs)
    pads = [longest - len(run["prompt_ids"]) for run in runs]
    ids = torch.tensor([[0] * n + r["prompt_ids"] for n, r in zip(pads, runs, strict=True)])
    mask = torch.tensor([[0] * n + [1] * (longest - n) for n in pads])
    out = model.generate(ids, attention_mask=mask, logits_processor=[remedy], **options)
    assert out[:, longest:].tolist() == [run["rpg"] for run in runs]


@pytest.mark.parametrize("option", ["decay", "eos_divisor"])
@pytest.mark.parametrize("value", [0.0, 1.5, float("nan")])
def test_values_out_of_range(tokenizer, option, value):
    with pytest.raises(UsageError, match=f"{option}={value:g} is outside"):
        RPGReleased(tokenizer, **{option: value})
