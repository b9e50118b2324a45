"""Recall tasks: what is generated has the form of the golden examples, and one right answer."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from linearize.errors import InputError, UsageError
from linearize.eval.recall import corpus, extraction, niah, pairs, passkey, phonebook
from linearize.eval.recall.copying import copying, lookup, token_accuracy
from linearize.eval.recall.filling import words
from linearize.eval.recall.mqar import IGNORED, TEST, TRAIN, mqar
from linearize.eval.recall.set_disjointness import set_disjointness

ESSAY = "The first sentence. A second one follows it. Then comes the third."


def golden(shared: Path, name: str) -> list[Any]:
    file = shared / "golden" / "jrt" / "synthetic_a.json"
    return json.loads(file.read_text())[name]


def assert_is_mqar(inputs: Any, labels: Any, *, pairs: int, vocab: int, passes: int = 1) -> None:
    """What holds of every MQAR example, whoever made it."""
    for row, wanted in zip(np.array(inputs), np.array(labels), strict=True):
        block = row[: 2 * pairs * passes].reshape(passes, pairs, 2)
        assert (block == block[0]).all()
        held = dict(block[0].tolist())
        assert len(held) == pairs
        assert len(set(held.values())) == pairs
        assert all(0 < key < vocab // 2 <= value < vocab for key, value in held.items())
        at = np.flatnonzero(wanted != IGNORED)
        assert (at >= block.size).all()
        assert (at % 2 == 0).all()
        assert {row[i]: wanted[i] for i in at} == held


def assert_is_set_disjointness(inputs: Any, labels: Any, *, first: int, second: int) -> None:
    for row, wanted in zip(np.array(inputs).tolist(), np.array(labels).tolist(), strict=True):
        assert (row[0], row[1 + first], row[-1]) == (1, 2, 3)
        a, b = row[1 : 1 + first], row[2 + first : -1]
        assert (len(set(a)), len(set(b))) == (first, second)
        assert set(a) & set(b) == {wanted[-1]}
        assert set(wanted[:-1]) == {IGNORED}
        assert min(a + b) > 3


def test_golden_mqar_and_ours_have_the_same_form(shared: Path) -> None:
    for case in golden(shared, "mqar"):
        given = case["params"]
        form = {"pairs": given["num_kv_pairs"], "vocab": given["vocab_size"]}
        assert_is_mqar(case["inputs"], case["labels"], **form)
        made = mqar(
            given["num_examples"],
            length=given["input_seq_len"],
            pairs=given["num_kv_pairs"],
            vocab_size=given["vocab_size"],
            random_non_queries=given["random_non_queries"],
        )
        assert made.inputs.shape == np.shape(case["inputs"])
        assert_is_mqar(made.inputs, made.labels, **form)
        # Where nothing is asked, and no pair stands, there is a zero.
        empty = (made.labels == IGNORED)[:, 2 * form["pairs"] :]
        assert not made.inputs[:, 2 * form["pairs"] :][empty].any()


def test_golden_set_disjointness_and_ours_have_the_same_form(shared: Path) -> None:
    for case in golden(shared, "set_disjointness"):
        given = case["params"]
        sizes = {"first": given["short_length"], "second": given["long_length"]}
        assert_is_set_disjointness(case["inputs"], case["labels"], **sizes)
        made = set_disjointness(given["num_examples"], vocab_size=given["vocab_size"], **sizes)
        assert made.inputs.shape == np.shape(case["inputs"])
        assert_is_set_disjointness(made.inputs, made.labels, **sizes)


def test_mqar_reads_its_pairs_several_times() -> None:
    made = mqar(20, length=64, pairs=5, num_passes=3, vocab_size=64)
    assert_is_mqar(made.inputs, made.labels, pairs=5, vocab=64, passes=3)


def test_mqar_gaps_follow_the_power_law() -> None:
    made = mqar(3000, length=64, pairs=1, vocab_size=64, random_non_queries=False)
    gaps = (np.nonzero(made.labels != IGNORED)[1] - 2) // 2 + 1
    wanted = np.arange(1, 32.0) ** (0.01 - 1)
    found = np.bincount(gaps, minlength=32)[1:] / 3000
    np.testing.assert_allclose(found, wanted / wanted.sum(), atol=0.03)


def test_every_set_of_the_paper_can_be_made() -> None:
    for length, count in {**TRAIN, **TEST}:
        made = mqar(1, length=length, pairs=count)
        assert_is_mqar(made.inputs, made.labels, pairs=count, vocab=8192)


def test_mqar_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="at least 64 tokens"):
        mqar(1, length=62, pairs=16)
    with pytest.raises(UsageError, match="vocab_size=16 has 7 keys for 8"):
        mqar(1, length=64, pairs=8, vocab_size=16)


MAKERS = {
    "pairs": lambda n, seed: pairs.pairs(n, seed=seed),
    "fda": lambda n, seed: extraction.fda_like(n, seed=seed),
    "swde": lambda n, seed: extraction.swde_like(n, seed=seed),
    "phonebook": lambda n, seed: phonebook.phonebook(n, seed=seed),
    "passkey": lambda n, seed: passkey.passkey(n, seed=seed, length=200),
    "niah": lambda n, seed: niah.niah("multikey_3", n, seed=seed, length=400),
    "copying": lambda n, seed: copying(n, seed=seed),
    "lookup": lambda n, seed: lookup(n, seed=seed),
    "corpus": lambda n, seed: ["".join(t) for t in corpus.texts(n, seed=seed, longest=40)],
}


@pytest.mark.parametrize("name", MAKERS)
def test_items_depend_on_seed_and_number_alone(name: str) -> None:
    made = MAKERS[name](6, 1)
    assert made == MAKERS[name](6, 1)
    assert made[:2] == MAKERS[name](2, 1)
    assert made != MAKERS[name](6, 2)


@pytest.mark.parametrize("make", [extraction.fda_like, extraction.swde_like])
def test_extraction_states_what_it_asks_once(make: Any) -> None:
    for item in make(30, words=120, attributes=5):
        assert set(item) == {"doc_id", "key", "value", "text"}
        assert item["text"].lower().count(f"{item['key']}: {item['value']}".lower()) == 1
        assert 120 <= words(item["text"]) < 140


def test_extraction_knows_its_attributes() -> None:
    with pytest.raises(UsageError, match="attributes=8: documents of this kind have 7"):
        extraction.swde_like(1, attributes=8)


def test_released_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "fda.jsonl"
    row = {"doc_id": "a", "key": "code", "value": "X1", "text": "Code: X1."}
    file.write_text(json.dumps(row) + "\n\n")
    assert extraction.released("fda", file) == [row]
    with pytest.raises(InputError, match=r"line 1 has no field context, question"):
        extraction.released("squad_completion", file)
    with pytest.raises(InputError, match="cannot read"):
        extraction.released("swde", tmp_path / "none.jsonl")
    with pytest.raises(UsageError, match="did you mean 'swde'"):
        extraction.released("swd", file)


def test_pairs_have_distinct_keys() -> None:
    for item in pairs.pairs(10, count=100):
        keys = item["text"].removeprefix("Pairs: ").removesuffix(".").split()[::2]
        assert len(set(keys)) == 100
        assert f" {item['key']} {item['value']}" in item["text"]


def test_the_phone_book_holds_the_number_and_demonstrates_others() -> None:
    for item in phonebook.phonebook(10, count=10):
        book, shown = item["context"].split("\nFrom the book above:\n")
        entry = f"{item['question']} {item['answers'][0]}"
        assert entry in book.splitlines()
        assert entry not in shown
        assert len(book.splitlines()) == 10
        assert len(shown.splitlines()) == 2


@pytest.mark.parametrize("length", [150, 400])
def test_the_pass_key_is_at_its_depth_in_a_text_of_the_length(length: int) -> None:
    for item in passkey.passkey(11, length=length):
        whole = item["context"] + item["question"]
        assert length - 20 < words(whole) <= length
        lines = item["context"].splitlines()[1:]
        place = next(i for i, line in enumerate(lines) if item["answers"][0] in line)
        assert place / (len(lines) - 1) == pytest.approx(item["depth"] / 100, abs=1 / len(lines))


@pytest.mark.parametrize("variant", niah.VARIANTS)
def test_needles_are_found_once_at_lengths_counted_by_the_measure(variant: str) -> None:
    for item in niah.niah(variant, 5, length=1500, essay=ESSAY, measure=len):
        whole = item["context"] + item["question"]
        assert 1500 - niah.RESERVED - 160 < len(whole) <= 1500 - niah.RESERVED
        key = item["question"].split(" for ")[1].split(" mentioned")[0]
        assert item["context"].count(f" for {key} is: {item['answers'][0]}.") == 1
        assert item["context"].count(f" for {key} ") == 1


def test_a_needle_without_hay_or_room_is_refused() -> None:
    with pytest.raises(UsageError, match="give one as essay"):
        niah.niah("single_2", 1)
    with pytest.raises(UsageError, match="too short: the task itself takes"):
        niah.niah("single_1", 1, length=150)


def test_lookup_asks_for_letters_that_occur_once() -> None:
    for item in lookup(20, length=40, n=2):
        text = item["context"].removeprefix("Text: ")
        asked = item["question"].removeprefix("From the text: ")
        assert text.count(f"{asked} {item['answers'][0]}") == 1
        letters = text.split()
        grams = Counter(pairwise(letters))
        assert grams[tuple(asked.split())] == 1
    assert token_accuracy("a b c d", "a b x d") == 0.75


def test_the_corpus_answers_from_its_documents() -> None:
    for text in map("".join, corpus.texts(60, seed=3, longest=60)):
        *copies, last = text.split("\n")
        if "Pairs: " in last:
            told, asked = last.split("Pairs: ")[1].split(". ")
            answers = zip(*[iter(asked.split())] * (1 + corpus.NUMBERS), strict=True)
            assert all(" ".join(answer) in told for answer in answers)
        for copy in copies:
            announced, document = copy.removeprefix("Information about ").split(". ", 1)
            assert last.startswith(document)
            assert announced.split(", ")[0] in last.removeprefix(document)
