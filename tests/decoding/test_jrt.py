"""JRT-Prompt: the published prompts character by character, and repetition of any context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from linearize.decoding import jrt, jrt_templates
from linearize.errors import InputError, UsageError
from linearize.eval.metrics.containment import contains

NAMES = {"squad": "squad_completion"}


@pytest.fixture(scope="module")
def published(shared: Path) -> dict[str, Any]:
    return json.loads((shared / "golden" / "jrt" / "prompts_a.json").read_text())


@pytest.fixture(scope="module")
def tokenizer(shared: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_file=str(shared / "golden" / "jrt" / "tokenizer.json"), bos_token=None
    )


def test_published_prompts(published: dict[str, Any], tokenizer: Any) -> None:
    cut = jrt_templates.Truncation(
        tokenizer, published["context_length"], published["answer_length"]
    )
    assert len(published["items"]) >= 18
    for item in published["items"]:
        task, doc = NAMES.get(item["task"], item["task"]), item["doc"]
        for times, name in ((1, "default"), (2, "twice")):
            made = jrt_templates.prompt(task, doc, times=times)
            assert made == item[name], doc["doc_id"]
            expected = item[f"{name}_truncated"]
            assert jrt_templates.usable(task, doc) == (expected is not None)
            if expected is not None:
                made = jrt_templates.prompt(task, doc, times=times, truncation=cut)
                assert made == expected, doc["doc_id"]
    assert list(jrt_templates.STOP) == published["stop"]
    assert published["max_gen_toks"] == jrt_templates.MAX_NEW_TOKENS


def test_containment_metric(shared: Path) -> None:
    items = json.loads((shared / "golden" / "jrt" / "contains_a.json").read_text())
    for item in items:
        assert contains(item["prediction"], item["labels"]) == item["score"], item


def test_full_stops_and_repeated_questions() -> None:
    doc = {"context": "Two goals . . .", "question": "It had", "orig_question": "How many?:"}
    assert jrt_templates.prompt("drop", doc, times=1) == "Two goals . . . It had"
    assert jrt_templates.prompt("drop", doc) == "How many? Two goals . ..\nTwo goals . .. It had"
    doc = {**doc, "context": "Two goals. it HAD It had", "question": " It had "}
    assert jrt_templates.prompt("drop", doc, times=1) == "Two goals. It had"
    assert jrt_templates.prompt("nq", doc, times=1) == "Two goals. it HAD. It had"
    empty = jrt_templates.prompt("triviaqa", {**doc, "question": ""}, times=1)
    assert empty == "Two goals. it HAD It had."


def test_more_copies_and_the_control() -> None:
    doc = {"text": "Maker: Orrin", "key": "maker", "value": "Orrin"}
    assert jrt_templates.prompt("fda", doc, times=3, cue=False) == (
        "Maker: Orrin.\nMaker: Orrin.\nMaker: Orrin. Maker:"
    )
    assert jrt_templates.prompt("fda", doc, times=1, cue=True) == (
        "Information about Maker. Maker: Orrin. Maker:"
    )
    assert not jrt_templates.usable("fda", {**doc, "value": "R"})
    with pytest.raises(UsageError, match="swde"):
        jrt_templates.prompt("swd", doc)
    with pytest.raises(InputError, match="'context'"):
        jrt_templates.prompt("drop", doc)


def test_a_summary_of_the_answers_is_never_shown() -> None:
    page = "Year: 1983 \n\nSummary of information above...\nyear: 1983"
    doc = {"text": page, "key": "year", "value": "1983"}
    for times in (1, 2):
        assert "Summary" not in jrt_templates.prompt("swde", doc, times=times)


def test_windows_of_documents(tokenizer: Any) -> None:
    text = " ".join(f"Item {i} costs {i * 7}." for i in range(200))
    cut = jrt_templates.Truncation(tokenizer, context_length=60, answer_length=10)
    around = cut.cut(text, [["NOWHERE", "item 100 COSTS"]])
    assert "Item 100 costs 700." in around
    assert len(tokenizer(around).input_ids) <= 51
    assert cut.cut(text, None) == text[: len(cut.cut(text, None))]
    lost = cut.cut(text, [["nowhere"]])
    assert text.endswith(lost), "an answer that is not found leaves the end, half a window"
    assert len(tokenizer(lost).input_ids) < 30
    assert cut.cut(text, [["nowhere"]], 0) == cut.cut(text, None)


def test_any_context_is_repeated() -> None:
    assert jrt.repeat("D.", "Q:") == "D.\nD. Q:"
    assert jrt.repeat("D.\n", "Q:") == "D.\nD.\nQ:"
    assert jrt.repeat("D.", "\nQ:", 3) == "D.\nD.\nD.\nQ:"
    assert jrt.repeat("D Q:") == "D Q:\nD Q:", "without a question all of it is repeated"
    assert jrt.repeat("D.", "Q:", cue="On Q.") == "On Q. D.\nD. Q:"
    assert jrt.repeat("D.", "Q:", 1) == "D. Q:"
    assert jrt.repeat("", "Q:") == "Q:"
    with pytest.raises(UsageError, match="0 times"):
        jrt.repeat("D.", times=0)


def test_copies_have_the_same_tokens(tokenizer: Any) -> None:
    text = "The bridge carries 40,000 vehicles a day"
    ids = tokenizer(text).input_ids
    newline = tokenizer("\n").input_ids
    assert tokenizer(jrt.repeat(text, times=3)).input_ids == [*ids, *newline] * 2 + ids


def test_a_document_is_cut_before_it_is_repeated(tokenizer: Any) -> None:
    text = " ".join(f"Item {i} costs {i * 7}." for i in range(200))

    def length(document: str) -> int:
        return len(tokenizer(jrt.repeat(document, "Item 7 costs", 3)).input_ids)

    cut = jrt.fitted(tokenizer, text, room=100, length=length, times=3)
    assert text.endswith(cut)
    assert 90 <= length(cut) <= 100
    assert jrt.fitted(tokenizer, text, room=10**6, length=length, times=3) == text
    with pytest.raises(InputError, match="no room for a document that is read 3 times in 5 tokens"):
        jrt.fitted(tokenizer, text, room=5, length=length, times=3)


def test_cost_counts_extra_tokens(tokenizer: Any) -> None:
    once, twice = "A long document. Q:", "A long document.\nA long document. Q:"
    cost = jrt.cost(tokenizer, twice, once, 2)
    extra = len(tokenizer("A long document.\n").input_ids)
    assert (cost.prompt_tokens, cost.extra_tokens) == (len(tokenizer(twice).input_ids), extra)
    assert cost.seconds(2.0) == pytest.approx(2.0 * extra / cost.prompt_tokens)
