"""The recall demonstration: right answers are counted as such, and the whole of it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from linearize import pretrained
from linearize.errors import UsageError
from linearize.eval import recall_demo
from linearize.eval.recall import corpus, demonstration, measure, questions

PROMPTS = ["import os\nimport", "def", "class", "def f(x):\n    return", "if x is"]


@pytest.fixture(scope="module")
def embedded() -> tuple[object, object]:
    path = pretrained.locate("embedded")
    model = pretrained.load(path, dtype="float32", device=torch.device("cpu"))
    return model.eval(), pretrained.tokenizer(path, False)


def test_right_is_what_greedy_decoding_writes(embedded: tuple) -> None:
    model, tokenizer = embedded
    asked, wanted = [], []
    for prompt in PROMPTS:
        ids = [tokenizer.bos_token_id, *tokenizer(prompt).input_ids]
        written = model.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False)[
            0, len(ids) :
        ].tolist()
        text = tokenizer.decode(written)
        if text.startswith(" ") and tokenizer(text).input_ids == written:
            asked += [(prompt, text[1:]), (prompt, f"{text[1:]}q"), (prompt, "zebra")]
            wanted += [True, False, False]
    assert len(wanted) >= 6
    found = measure.exact_match(model, tokenizer, asked, tokens_at_once=64)
    assert found.tolist() == wanted


def test_an_answer_needs_words_and_a_clean_prompt(embedded: tuple) -> None:
    for question in (("a", " "), ("a ", "b")):
        with pytest.raises(UsageError, match="must not end in white space"):
            measure.exact_match(*embedded, [question])


@pytest.mark.parametrize("task", questions.TASKS)
def test_prompts_are_those_of_the_corpus(task: str) -> None:
    for one in questions.ask(task, 10, words=24, seed=5):
        for form in corpus.FORMS:
            prompt, rest = corpus.told(one.document, [one.key], form)
            assert prompt == one.prompt(form)
            assert rest == f" {one.answer}"


def test_drills_tell_the_same_pairs_again() -> None:
    for _, text in corpus.drills(20, seed=0):
        words = text.removeprefix("Pairs: ").removesuffix(".").split()
        told = list(zip(*[iter(words)] * (1 + corpus.NUMBERS), strict=True))
        count = len({key for key, *_ in told})
        assert len(set(told)) == count
        assert len(told) % count == 0
        assert len(told) >= 2 * count


def test_the_demonstration_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert recall_demo.main(["--out", str(tmp_path), "--smoke"]) == 0
    found = json.loads((tmp_path / "results.json").read_text())
    size = demonstration.SMOKE
    assert len(found["rows"]) == len(demonstration.ROWS) * len(questions.TASKS) * len(size.words)
    assert set(found["models"]) == {"teacher", *demonstration.CONVERSIONS}
    assert (tmp_path / "recall.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert all(f"| {row.name} |" in table for row in demonstration.ROWS)
