"""Counting metrics: the authors' numbers, definitions on small cases, and what always holds."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linearize.errors import UsageError
from linearize.eval.metrics.ngrams import (
    diversity,
    ngrams,
    rep_n,
    rep_n_by_position,
    rep_r,
    rep_w,
    repeated,
    seq_rep_n,
    uniq,
)
from linearize.eval.metrics.repetition import repetition
from linearize.eval.metrics.sentences import rep_s, rep_sen, sentence_repetition, sentences

WORDS = st.lists(st.sampled_from("abc."), max_size=30)
SHARES = {
    "rep-2": lambda seqs: rep_n(seqs, 2),
    "seq-rep-4": lambda seqs: seq_rep_n(seqs, 4),
    "rep-w": rep_w,
    "rep-r": rep_r,
    "rep-r released": lambda seqs: rep_r(seqs, released=True),
    "rep-sen": rep_sen,
    "rep-sen released": lambda seqs: rep_sen(seqs, released=True),
    "rep-s": lambda seqs: rep_s(["\n".join(s) for s in seqs]),
    "rep-s released": lambda seqs: rep_s(["\n".join(s) for s in seqs], released=True),
    "sentence repetition": lambda seqs: sentence_repetition(["".join(s) for s in seqs]),
    "diversity": diversity,
}


@pytest.fixture(scope="module")
def rpg(shared):
    return json.loads((shared / "golden" / "anti_repetition" / "rpg_metrics.json").read_text())


@pytest.fixture(scope="module")
def ditto(shared):
    return json.loads((shared / "golden" / "anti_repetition" / "ditto_metrics.json").read_text())


def exactly(value):
    return pytest.approx(value, rel=1e-9, abs=1e-9)


def test_rpg_scripts_text_by_text(rpg):
    for row in rpg["texts"]:
        tokens = row["tokens"]
        for n, counts in row["ngram_counts"].items():
            grams = ngrams(tokens, int(n))
            assert [repeated(grams), len(grams)] == counts
        if row["rep_w"] is not None:
            assert 100 * rep_w([tokens], window=rpg["window"]) == exactly(row["rep_w"])
        assert 100 * rep_r([tokens], released=True) == exactly(row["rep_r"])
        assert 100 * rep_s([row["text"]], released=True) == exactly(row["rep_s"])


def test_rpg_scripts_corpus(rpg):
    tokens = [row["tokens"] for row in rpg["texts"]]
    texts = [row["text"] for row in rpg["texts"]]
    corpus = rpg["corpus"]
    for n, value in corpus["rep_n"].items():
        assert round(100 * rep_n(tokens, int(n)), 4) == value
    assert 100 * rep_w(tokens, window=rpg["window"]) == exactly(corpus["rep_w"])
    assert 100 * rep_r(tokens, released=True) == exactly(corpus["rep_r"])
    assert 100 * rep_s(texts, released=True) == exactly(corpus["rep_s"])


def test_ditto_scripts(ditto):
    sequences = ditto["sequences"]
    for tokens, shares in zip(sequences, ditto["per_sequence_pct_repeat"], strict=True):
        for n in range(1, 5):
            assert seq_rep_n([tokens], n) == exactly(shares[f"pct_repeat_{n}grams"])
    for n in range(1, 5):
        value = ditto["corpus_rounded"][f"test/pct_repeat_{n}grams"]
        assert round(seq_rep_n(sequences, n), 4) == value
    got = [rep_sen([tokens], released=True) for tokens in sequences]
    assert got == exactly(ditto["sentence_repetition"])
    assert rep_sen(sequences, released=True) == exactly(ditto["sentence_repetition_mean"])
    assert uniq(sequences) == ditto["num_unique_tokens"]


def test_padding_cuts_a_sequence(ditto):
    padded = ditto["padded"]
    for n in range(1, 5):
        got = seq_rep_n([padded["sequence"]], n, pad=padded["pad"])
        assert got == exactly(padded["pct_repeat"][f"pct_repeat_{n}grams"])


def test_micro_and_macro_averages_differ():
    texts = [list("aaaaa"), list("abc")]
    assert rep_n(texts, 2) == exactly(3 / 6)
    assert seq_rep_n(texts, 2) == exactly((3 / 4 + 0) / 2)
    assert diversity(texts) == exactly((3 / 6) * (2 / 4) * (1 / 2))


def test_windows_and_bigrams():
    assert rep_w([list("abcab")], window=3) == exactly(2 / 4)
    assert rep_w([list("abcab")], window=2) == 0
    assert rep_r([list("abxab")]) == exactly(4 / 5)
    assert rep_r([list("abab"), [], ["a"]]) == 1
    assert rep_r([list("abab"), [], ["a"]], released=True) == exactly(1 / 4)


def test_the_strict_forms_count_every_sentence():
    # Released: the first span is ignored, so the copy of it is the only "a b" left.
    tokens = ["a", "b", ".", "a", "b", ".", "c", "d", "."]
    assert rep_sen([tokens]) == exactly(1 / 3)
    assert rep_sen([tokens], released=True) == 0
    assert rep_sen([tokens[:-1]]) == exactly(1 / 3), "a sentence without its mark is one too"
    assert rep_s(["x = 1\nx = 1"]) == exactly(1 / 2)
    assert rep_s(["x = 1\nx = 1"], released=True) == 0
    assert rep_s(["x\n\n\ny\n  x  \r\n"]) == exactly(1 / 3), "blank lines are no sentences"


def test_sentences_of_a_text():
    text = 'He said "Go." She went!  Then\n- one\n- two\nIt cost 3.50, i.e. little 好。好。'
    assert sentences(text) == [
        'He said "Go."',
        "She went!",
        "Then",
        "- one",
        "- two",
        "It cost 3.50, i.e.",
        "little 好。",
        "好。",
    ]
    assert sentence_repetition(["I am. I am. I am", "Once."]) == exactly((1 / 3 + 0) / 2)


@pytest.mark.parametrize("name", SHARES)
@given(sequences=st.lists(WORDS, max_size=5), data=st.data())
def test_every_value_is_a_share_whatever_the_order(name, sequences, data):
    value = SHARES[name](sequences)
    assert 0 <= value <= 1
    shuffled = data.draw(st.permutations(sequences))
    assert SHARES[name](shuffled) == value
    assert SHARES[name]([*sequences, []]) == value or name.endswith("released")


@pytest.mark.parametrize("name", SHARES)
@given(sequences=st.lists(WORDS, min_size=1, max_size=4))
def test_names_do_not_matter(name, sequences):
    other = {"a": "x", "b": "yy", "c": "z", ".": "."}
    renamed = [[other[word] for word in tokens] for tokens in sequences]
    if name == "rep-s released":  # its last line loses one character, whatever it is
        renamed = [[word[:1] for word in tokens] for tokens in renamed]
    assert SHARES[name](renamed) == SHARES[name](sequences)


@given(lines=st.lists(st.text("ab", min_size=1, max_size=3), min_size=1), data=st.data())
def test_one_more_copy_never_lowers(lines, data):
    copy = data.draw(st.sampled_from(lines))
    assert rep_s(["\n".join([*lines, copy])]) >= rep_s(["\n".join(lines)])
    said = [f"{line}." for line in lines]
    assert sentence_repetition([" ".join([*said, f"{copy}."])]) >= sentence_repetition(
        [" ".join(said)]
    )
    spans = [token for line in lines for token in (*line, ".")]
    assert rep_sen([[*spans, *copy, "."]]) >= rep_sen([spans])


@given(tokens=st.lists(st.integers(0, 3), min_size=1, max_size=20), n=st.integers(1, 4))
def test_a_text_said_again_and_again_tends_to_full_repetition(tokens, n):
    values = [rep_n([tokens * copies], n) for copies in (4, 8, 16)]
    assert values == sorted(values)
    assert values[-1] >= 1 - (len(tokens) + n) / (16 * len(tokens))


@given(
    texts=st.lists(st.text(max_size=40), max_size=4),
    language=st.sampled_from([None, "python", "go", "c"]),
)
def test_the_summary_takes_any_text(texts, language):
    if language is not None:
        pytest.importorskip("tree_sitter")
        pytest.importorskip(f"tree_sitter_{language}")
    found = repetition(texts, language=language, prompts=["x = 1\n"] * len(texts))
    assert all(math.isfinite(v) and 0 <= v <= 1 for v in found.values())
    assert ("tr-s" in found) == (language is not None)


def test_the_summary_of_loops_of_nothing_and_of_a_plain_text():
    loop = repetition(["I am here. " * 20])
    assert loop["rep-4"] > 0.9 < loop["rep-sen"]
    assert loop["diversity"] < 0.01
    nothing = repetition(["", ""])
    assert nothing == repetition([])
    assert {name for name, value in nothing.items() if value} == {"diversity"}
    by_ids = repetition(["say it"], tokens=[[1, 2, 1, 2, 1]])
    assert by_ids["rep-2"] == exactly(2 / 4)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: rep_n([["a"]], 0), "n=0 is below 1"),
        (lambda: rep_w([["a"]], window=0), "window=0 is below 1"),
        (lambda: repetition(["a"], prompts=["a", "b"]), "2 prompts for 1 texts"),
        (lambda: repetition(["a"], tokens=[]), "0 token sequences for 1 texts"),
    ],
)
def test_a_mistake_is_named(call, says):
    with pytest.raises(UsageError, match=says):
        call()


def test_ngrams_repeat_where_they_end():
    found = rep_n_by_position(["abcabcab", "xy"], 2, [0, 3, 6, 8, 9])
    # ab bc | ca ab bc | ca ab; xy ends at 1.
    assert found[:3] == [0, 2 / 3, 1]
    assert math.isnan(found[3])
    whole = rep_n_by_position(["abcabcab", "xy"], 2, [0, 8])
    assert whole == [rep_n(["abcabcab", "xy"], 2)]
