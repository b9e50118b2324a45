"""Metrics of code: the authors' lexical ones, and the paper's on the tree."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linearize.errors import InputError, UsageError
from linearize.eval.metrics.code import compile_rate, compiles, egp, lexemes, tr_n, tr_s
from linearize.eval.metrics.ngrams import mean
from linearize.eval.metrics.repetition import repetition

SMALL = {
    "python": "def f(a):\n    return a\n",
    "go": "package p\nfunc f(a int) int {\n\treturn a\n}\n",
    "java": "class A { int f(int a) { return a; } }\n",
    "javascript": "function f(a) { return a; }\n",
    "typescript": "function f(a: number): number { return a; }\n",
    "c": "int f(int a) { return a; }\n",
    "cpp": "int f(int a) { return a; }\n",
    "rust": "fn f(a: i32) -> i32 { return a; }\n",
}


@pytest.fixture(scope="module")
def rpg(shared):
    return json.loads((shared / "golden" / "anti_repetition" / "rpg_metrics.json").read_text())


def test_lexemes_and_released_forms(rpg):
    pytest.importorskip("parso")
    texts = [row["text"] for row in rpg["texts"]]
    assert [lexemes(text) for text in texts] == [row["tokens"] for row in rpg["texts"]]
    corpus = rpg["corpus"]
    for n, value in corpus["rep_n"].items():
        assert round(100 * tr_n(texts, n=int(n), released=True), 4) == value
    got = 100 * tr_s(texts, released=True)
    assert got == pytest.approx(corpus["rep_s"], rel=1e-9)


def test_compile_rate_and_share_of_outputs_that_end(rpg):
    texts = [row["text"] for row in rpg["texts"]]
    got = [compiles(text, released=True) for text in texts]
    assert got == [bool(row["compiles_skipping_first_line"]) for row in rpg["texts"]]
    rate = compile_rate(texts, released=True)
    assert rate == pytest.approx(rpg["corpus"]["compile_rate"], rel=1e-9)
    runs = rpg["run_statistics"]
    outputs = [[5, 2, 7] if row["eos"] else [5, 7] for row in runs["rows"]]
    assert egp(outputs, 2) == egp(outputs, [9, 2]) == pytest.approx(runs["egp"], rel=1e-9)
    assert mean(row["len"] for row in runs["rows"]) == runs["mean_len"]
    assert mean(row["time"] for row in runs["rows"]) == pytest.approx(runs["mean_time"], rel=1e-9)


@pytest.mark.parametrize("language", SMALL)
def test_every_language_tells_whole_code_from_a_cut_one(language):
    pytest.importorskip(f"tree_sitter_{language}")
    whole = SMALL[language]
    assert compiles(whole, language)
    assert not compiles(whole[: whole.index("(") + 1], language)
    assert 0 <= tr_s([whole], language) < 1
    assert tr_s([whole * 10], language) >= 0.8
    assert tr_n([whole * 10], language) >= 0.8


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x = '\\d'\nassert (x, 1)\n", True),  # warns
        ("x: (y := 1) = 2\n", True),  # not under this package's own __future__ imports
        ("", True),
        ("x = (\n", False),
        ("x = '\0'", False),
        ("x = '\ud800'", False),
        ("(" * 5000 + ")" * 5000, False),
        ("x = " + "1" * 5000, False),
        ("x = " + "-" * 20000 + "1", False),
    ],
    ids=range(9),
)
def test_what_python_compiles(text, expected):
    assert compiles(text) is expected


@pytest.mark.parametrize("language", ["python", "javascript", "c", "rust"])
@pytest.mark.parametrize("piece", ["(", "{", "-", "x.", "1+", "else if(a) "])
def test_a_loop_may_nest_deeper_than_python_recurses(language, piece):
    pytest.importorskip(f"tree_sitter_{language}")
    text = "if (a) " + piece * 800
    assert 0 <= tr_s([text], language) <= 1
    assert 0 <= tr_s([text], language, level="terminal") <= 1
    assert 0 <= tr_n([text], language) <= 1
    assert not compiles(text, language)


def test_comments_are_no_statements():
    pytest.importorskip("tree_sitter_java")
    bare = "class A { int a; int f() { return a; } }"
    assert tr_s([bare.replace("{ ", "{ // one\n/* two */ ")], "java") == tr_s([bare], "java")


def test_names_and_values_are_no_difference():
    pytest.importorskip("tree_sitter_python")
    ladder = "if a:\n    b = 1\nelif c:\n    b = 2\nelif d:\n    b = 33\n"
    renamed = ladder.translate(str.maketrans("abcd123", "wxyz789"))
    assert tr_s([ladder]) == tr_s([renamed]) > 0
    assert tr_n([ladder]) == tr_n([renamed]) > 0
    assert tr_s(["x = 1\n"]) == 0
    assert tr_s(["x = 1\ny = z\n"]) == pytest.approx(1 / 2), "expressions collapse"
    assert tr_s(["x = 1\ny = z\n"], level="terminal") == 0, "a name is not a number"


def test_only_what_begins_after_the_prompt_counts():
    pytest.importorskip("tree_sitter_python")
    prompt, text = "# é\nx = 1\nx = 1\nx = 1\n", "y = 2\nimport os\n"
    assert tr_s([prompt + text]) == pytest.approx(3 / 5)
    assert tr_s([prompt + text], starts=len(prompt)) == 0
    assert tr_s([prompt + text] * 2, starts=[0, len(prompt)]) == pytest.approx(3 / 10)
    assert tr_n([prompt + text], starts=len(prompt)) == 0 < tr_n([prompt + text])
    found = repetition([text], prompts=[prompt], language="python")
    assert (found["tr-s"], found["compile"]) == (0, 1)
    assert repetition([") + 1\n"], prompts=["x = (1\n"], language="python")["compile"] == 1


def test_a_copied_statement_never_lowers():
    pytest.importorskip("tree_sitter_python")
    bodies = ["x = f(1)\n", "for i in x:\n    y = i\n", "import os\n", "if a:\n    pass\n"]

    @given(st.lists(st.sampled_from(bodies), min_size=1, max_size=8))
    def holds(pieces):
        text = "".join(pieces)
        assert 0 <= tr_s([text]) <= tr_s([text + pieces[0]]) <= 1
        assert 0 <= tr_n([text]) <= 1

    holds()


def test_figures_rise_where_a_person_sees_repetition(shared):
    pytest.importorskip("tree_sitter_python")
    file = shared / "data" / "CodeRepetEval" / "ArtificialSynthesis.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()[:10]]
    looped = [row["prompt"] + row["samples"][0] for row in rows]
    assert tr_s(looped) > 0.7
    assert tr_n(looped) > 0.7


@pytest.mark.parametrize(
    ("call", "error", "says"),
    [
        (lambda: tr_s(["a"], "pyhton"), UsageError, "did you mean 'python'"),
        (lambda: compiles("a", "cobol"), UsageError, "no grammar for language 'cobol'"),
        (lambda: tr_n(["a"], starts=[1, 2]), UsageError, "2 starts for 1 texts"),
        (lambda: tr_n(["a"], "go", released=True), UsageError, "Python only, not 'go'"),
        (lambda: tr_s(["a"], starts=1, released=True), UsageError, "leave starts out"),
    ],
)
def test_a_mistake_is_named(call, error, says):
    pytest.importorskip("tree_sitter")
    with pytest.raises(error, match=says):
        call()


def test_without_parso_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "parso.python.tokenize", None)
    with pytest.raises(InputError, match=r'pip install "linearize\[metrics\]"'):
        lexemes("x")


def test_pooled_counts_statements_and_not_texts():
    once, often = "a = f(1)\n", "b = 1\n" * 8
    assert tr_s([once, often]) == (0 + 7 / 8) / 2
    assert tr_s([once, often], pooled=True) == 7 / 9
    assert tr_s([often], pooled=True) == tr_s([often])
    # b = 1 b = 1 ...: 8 * 3 elements, 3 distinct n-grams and the three that wrap around.
    assert tr_n([often, "x = y + 1"], n=3, pooled=True) == (22 - 3) / (22 + 3)
    assert tr_s([], pooled=True) == 0
