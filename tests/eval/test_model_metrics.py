"""Metrics that read a model: ranking, self-reinforcement, MAUVE."""

import json
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from linearize.errors import InputError, UsageError
from linearize.eval.metrics.mauve_score import mauve_score
from linearize.eval.metrics.ranking import aggregate, ranking
from linearize.eval.metrics.self_reinforcement import curves, measure_self_reinforcement
from linearize.eval.metrics.self_reinforcement_released import NextTokens, released_table


@pytest.fixture(scope="module")
def folder(shared):
    return shared / "golden" / "anti_repetition"


@pytest.fixture(scope="module")
def llama(folder):
    return AutoModelForCausalLM.from_pretrained(folder / "tiny_llama", dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder / "tokenizer")


def test_ranking_counts(folder):
    expected = json.loads((folder / "ditto_metrics.json").read_text())["ranking"]
    tensors = load_file(folder / "ditto_ranking.safetensors")
    for j, row in enumerate(expected):
        got = ranking(tensors[f"r{j}.logits"], tensors[f"r{j}.targets"])
        mean = aggregate([got])
        assert got.pop("tokens") == mean.pop("tokens") == row.pop("normalizer")
        assert mean == pytest.approx(row.pop("aggregated"), rel=1e-9)
        assert got == row


def test_ranking_aggregates_per_token_but_medians_per_sequence():
    logits = torch.eye(4)
    first = ranking(logits, torch.arange(4), windows=(2,))
    second = ranking(logits[:1], torch.tensor([1]), windows=(2,))
    both = aggregate([first, second])
    assert both["hits_at_1"] == pytest.approx(4 / 5)
    assert both["median_target_rank"] == pytest.approx((0 + 1) / 2)
    assert aggregate([]) == {}
    with pytest.raises(InputError, match="no pair of"):
        ranking(logits, torch.arange(3))


@pytest.mark.parametrize(
    ("table", "part", "names"),
    [
        (
            "curve",
            "all",
            ("First_AVG_Prob", "Repeat_AVG_Prob", "Improve_Rate", "Win_Rate"),
        ),
        (
            "position_curve",
            "middle",
            (
                "Middle_AVG_Prob_in_first",
                "Middle_Repeat_AVG_Prob",
                "Middle_Improve_Rate",
                "Middle_Win_Rate",
            ),
        ),
        (
            "position_curve",
            "first",
            ("First_prob_in_first", "First_Repeat_prob", "First_improve_rate", "First_win_rate"),
        ),
        (
            "position_curve",
            "end",
            ("Eos_prob_in_first", "Eos_Repeat_prob", "Eos_improve_rate", "Eos_win_rate"),
        ),
    ],
)
def test_the_released_table(folder, table, part, names):
    golden = json.loads((folder / "ditto_self_reinforcement.json").read_text())
    fields = ("prefix_len", "sentence_len", "target_tokens", "target_probs", "predicted_tokens")
    documents = [NextTokens(*(d[field] for field in fields)) for d in golden["documents"]]
    got = released_table(documents, part)
    assert len(got) == len(golden[table])
    for n, row in enumerate(got, 1):
        expected = golden[table][str(n)]
        assert list(row) == pytest.approx([expected[name] for name in names], rel=1e-9)


def test_the_papers_curves(folder):
    for row in json.loads((folder / "self_reinforcement_model.json").read_text()):
        probs = torch.tensor(row["prob"], dtype=torch.float64)
        got = curves([(probs, torch.tensor(row["is_argmax"]))])
        for name in ("TP", "IP", "WR"):
            assert getattr(got, name.lower()) == pytest.approx(row[name], rel=1e-9)


def test_a_model_is_measured_in_one_pass(folder, llama, tokenizer):
    for row in json.loads((folder / "self_reinforcement_model.json").read_text()):
        got = measure_self_reinforcement(
            llama, tokenizer, [row["sentence"]], row["copies"], prefix=row["prefix"]
        )
        assert got.tp == pytest.approx(row["TP"], rel=1e-5, abs=1e-6)
        assert got.slope == pytest.approx(row["TP"][1] - row["TP"][0], abs=1e-6)
        probs = torch.tensor(row["prob"])
        near = (probs - probs[0]).abs() < 1e-5  # these may flip
        for name in ("IP", "WR"):
            differs = (torch.tensor(getattr(got, name.lower())) - torch.tensor(row[name])).abs()
            assert (differs <= near.float().mean(1) + 1e-6).all()


def test_sentences_are_averaged_and_texts_repeated_as_tokens(llama, tokenizer):
    texts = ["The cat sat on the mat.", "He went home."]
    each = [measure_self_reinforcement(llama, tokenizer, [text], 4) for text in texts]
    both = measure_self_reinforcement(llama, tokenizer, texts, 4)
    assert both.tp == pytest.approx(
        [(a + b) / 2 for a, b in zip(*(e.tp for e in each), strict=True)]
    )
    assert both.sentences == 2
    assert both.ip[0] == both.wr[0] == 0
    # A text is read as it stands behind another one: with its blank.
    ids = tokenizer("He went home. He went home.", add_special_tokens=False).input_ids
    behind = ids[len(tokenizer("He went home.", add_special_tokens=False).input_ids) :]
    assert tokenizer.convert_ids_to_tokens(behind)[0].startswith("▁")
    same = measure_self_reinforcement(llama, tokenizer, [behind], 4)
    assert same.tp == each[1].tp


def test_without_anything_before_it_the_first_token_is_left_out(llama, tokenizer):
    unit = [355, 502, 1684, 1813]
    with torch.no_grad():
        probs = llama(torch.tensor([unit * 3])).logits[0].softmax(-1)
    known = [i for i in range(1, 12) if i % 4]
    table = torch.stack([probs[i - 1, (unit * 3)[i]] for i in known]).view(3, 3)
    got = measure_self_reinforcement(llama, tokenizer, [unit], 3, prefix=[])
    assert got.tp == pytest.approx(table.mean(1).tolist(), rel=1e-5)


def test_measuring_leaves_the_model_as_it_was(llama, tokenizer):
    llama.train()
    measure_self_reinforcement(llama, tokenizer, ["He went home."], 2)
    assert llama.training
    llama.eval()


@pytest.mark.parametrize(
    ("sentences", "copies", "error", "says"),
    [
        (["a"], 1, UsageError, "copies=1 is below 2"),
        ([], 2, InputError, "no sentence to measure"),
        ([""], 2, InputError, "has no tokens"),
        ([[5] * 100], 10**5, InputError, "use at most"),
    ],
)
def test_a_mistake_is_named(llama, tokenizer, sentences, copies, error, says):
    with pytest.raises(error, match=says):
        measure_self_reinforcement(llama, tokenizer, sentences, copies)


def test_without_mauve_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(InputError, match=r'pip install "linearize\[metrics\]"'):
        mauve_score(["a", "b"], ["a", "b"])


def test_mauve_ranks_texts_by_their_distance(llama, tokenizer):
    pytest.importorskip("mauve")
    words = ["the", "cat", "dog", "sat", "ran", "home", "big", "red"]
    human = [f"{a} {b} {a}" for a in words for b in words]
    loops = [" ".join([a] * 30) for a in words for _ in words]
    near, far = (
        mauve_score(human, texts, model=llama, tokenizer=tokenizer, num_buckets=4)
        for texts in (human, loops)
    )
    assert near == pytest.approx(1, abs=0.02)
    assert far < near
    with pytest.raises(InputError, match="too few"):
        mauve_score(["a"], ["b"], model=llama, tokenizer=tokenizer)
