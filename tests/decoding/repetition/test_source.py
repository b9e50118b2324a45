"""Runs of equal structure at the end of growing code."""

import pytest
from every_language import PROGRAMS, every_language
from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.decoding.repetition import source as module
from linearize.decoding.repetition.patterns import repeats
from linearize.decoding.repetition.source import Source

CALLS = {"python": "f(%d, 'a')\n", "go": '\tf(%d, "a")\n', "rust": '    f(%d, "a");\n'}
OPEN = {
    "python": "def m():\n",
    "go": "package main\nfunc m() {\n",
    "java": "class A {\n  void m() {\n",
    "c": "void m() {\n",
    "cpp": "namespace n { void m() {\n",
    "rust": "fn m() {\n",
    "javascript": "class A { m() {\n",
    "typescript": "class A { m() {\n",
}
CHAIN = {
    "python": "    elif a == %d:\n        f(%d)\n",
    "go": "else if a == %d {\n\t\tf(%d)\n\t} ",
    "rust": "else if a == %d { f(%d); } ",
}


def answers(source, min_copies=3):
    found = source.runs(min_copies=min_copies) + source.recent(min_copies=min_copies)
    return found + source.begun() + source.last()


def kinds(source, **options):
    return {run.kind: run for run in source.runs(**{"min_copies": 3, **options})}


@every_language
def test_growing_is_the_same_as_being_there(language):
    loop = (CALLS.get(language, 'f(%d, "a");\n') % 1).encode()

    @settings(max_examples=25, deadline=None)
    @given(data=st.data())
    def check(data):
        program = PROGRAMS[language].encode()
        text = program[: data.draw(st.integers(0, len(program)))]
        text += loop * data.draw(st.integers(0, 5))
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
        grown = Source(language)
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
            grown.append(text[a:b])
            answers(grown)
        fresh = Source(language, text)
        assert answers(grown) == answers(fresh)
        assert grown.complete() == fresh.complete()

    check()


@every_language
def test_a_copy_goes_its_own_way(language):
    call = CALLS.get(language, 'f(%d, "a");\n')
    first = Source(
        language, (OPEN[language] + "".join("    " + call % 1 for _ in range(3))).encode()
    )
    before = answers(first)
    copy = first.fork()
    copy.append(b"    return 1;\n" if language != "python" else b"    return 1\n")
    copy.append(("    " + call % 2).encode())
    answers(copy)
    assert before
    assert answers(first) == before
    assert bytes(copy.text).startswith(bytes(first.text))
    assert len(copy.text) > len(first.text)


@every_language
def test_statements_of_one_form(language):
    call = CALLS.get(language, 'f(%d, "a");\n')
    text = OPEN[language] + "".join("    " + call.strip("\t ") % n for n in range(5))
    run = kinds(Source(language, text.encode()))["statement"]
    assert (run.copies, run.period, run.starts) == (5, 1, frozenset({b"f"}))
    broken = text + ("    return 1\n" if language in ("python", "go") else "    return 1;\n") * 1
    same = kinds(Source(language, (broken + "    " + call % 7).encode()), min_copies=6)
    assert "statement" not in same or same["statement"].copies == 6


@every_language
def test_branches_of_an_if(language):
    chain = CHAIN.get(language, "else if (a == %d) { f(%d); } ")
    head = {"python": "    if a == 0:\n        f(0)\n", "go": "\tif a == 0 {\n\t\tf(0)\n\t} "}
    head["rust"] = "if a == 0 { f(0); } "
    first = head.get(language, "if (a == 0) { f(0); } ")
    text = OPEN[language] + first + "".join(chain % (n, n) for n in range(1, 6))
    runs = Source(language, text.encode()).runs(min_copies=3)
    starts = frozenset({b"elif" if language == "python" else b"else"})
    found = [run for run in runs if run.starts == starts]
    assert {run.kind for run in found} == {"statement", "shape"}
    assert all(run.copies >= 5 for run in found)


@every_language
@pytest.mark.parametrize("opening", ["x = f(", "x = g([", "h({1: ["])
def test_elements_of_a_bracket(language, opening):
    if "[" in opening and language in ("go", "cpp"):
        pytest.skip("no array of values")
    text = OPEN[language] + "    " + opening + "10, 20, " + "7, " * 4
    if language == "rust":
        text = OPEN[language] + "let " + opening.replace("{1: ", "(") + "10, 20, " + "7, " * 4
    run = kinds(Source(language, text.encode()))["element"]
    assert (run.copies, run.period, run.starts) == (4, 1, frozenset({b"7"}))
    different = OPEN[language] + "    " + opening + "1, 2, 3, 4, 5, "
    assert not Source(language, different.encode()).runs(min_copies=3)


def test_every_level_around_the_cursor_is_looked_at():
    method = "    def f(self):\n        a = 1\n        a = 1\n        a = 1\n"
    runs = Source("python", ("class A:\n" + method * 3).encode()).runs(min_copies=3)
    copies = {(run.column, run.copies) for run in runs if run.kind == "copy"}
    assert copies == {(4, 3), (8, 3)}
    assert {run.starts for run in runs} == {frozenset({b"def"}), frozenset({b"a"})}


@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_columns_are_bytes_of_indentation(indent, newline):
    text = f"def f():\n{indent}if a:\n" + f"{indent * 2}g(1)\n" * 3
    runs = Source("python", text.replace("\n", newline).encode()).runs(min_copies=3)
    assert {run.column for run in runs} == {2 * len(indent)}


@pytest.mark.parametrize("block", [["a = 1", "b()"], ["a = 1", "b()", "c += d", "del e"]])
def test_blocks_of_several_statements(block):
    text = "\n".join(block * 4) + "\n"
    run = kinds(Source("python", text.encode()))["copy"]
    assert (run.copies, run.period, run.starts) == (4, len(block), frozenset({b"a"}))
    assert f"4 copies of one block of {len(block)} statements, word for word" in run.reason


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("go", "func m() {\n\tswitch a {\n\tcase 1:\n" + "\t\tf(1)\n" * 3),
        ("java", "class A { void m() { switch (a) { case 1: " + "f(1); " * 3),
        ("javascript", "switch (a) { case 1: " + "f(1); " * 3),
    ],
)
def test_statements_of_a_case(language, text):
    pytest.importorskip(f"tree_sitter_{language}")
    run = kinds(Source(language, text.encode()))["copy"]
    assert (run.copies, run.starts) == (3, frozenset({b"f"}))


def test_statements_may_stand_apart():
    text = "if a:\n    b(1)\nelif c:\n    b(1)\nfor d in e:\n    b(1)\n"
    source = Source("python", text.encode())
    [run] = source.recent(min_copies=3)
    assert (run.kind, run.copies, run.starts) == ("recent", 3, frozenset({b"b"}))
    source.append(b"x = '''\n")
    assert source.recent(min_copies=3) == []


def test_equal_jumps_ask_for_an_end_before_they_are_penalised():
    guards = [f"if a > {n}:\n    return b\n" for n in range(3)]
    for number, starts in ((2, frozenset()), (3, frozenset({b"return"}))):
        [run] = Source("python", "".join(guards[:number]).encode()).recent(min_copies=2)
        assert (run.copies, run.starts) == (number, starts)


@pytest.mark.parametrize(
    ("language", "text", "starts"),
    [
        ("python", "if a:\n    b(1)\nif a:\n", b"b"),
        ("python", "if a:\n    b(1)\n    if a:\n", b"b"),  # inside the first one
        ("python", "if a:\n    b(1)\nfor c in d:\n    if a:\n", b"b"),
        ("python", "if a:\n    b(1)\n    c(2)\nif a:\n    b(1)\n", b"c"),
        ("python", "if a:\n    b(1)\nif a:\n    b(2)\n", None),
        ("python", "if a:\n    b(1)\nif a2:\n", None),
        ("python", "try:\n    b(1)\nexcept C:\n    d(2)\ntry:\n", None),  # says nothing
        ("python", "if a:\n    b(1)\nif a:", None),  # no statement could begin here
        ("python", "f(1, 2)\nf(1,", None),  # an element could
        ("python", "if a:\n    b(1)\nif a:\n    x = (\n", None),
        ("c", "void m() {\n  if (a) { b(1); }\n  if (a) {", b"b"),
        ("go", "package m\nfunc f() {\n\tfor a {\n\t\tb(1)\n\t}\n\tfor a {\n", b"b"),
        ("javascript", "for (a of b) { return c; }\nfor (a of b) {", b"return"),
    ],
)
def test_a_copy_that_has_begun(language, text, starts):
    found = Source(language, text.encode()).begun()
    assert [set(run.starts) for run in found] == ([] if starts is None else [{starts}])
    assert all(run.copies == 2 for run in found)
    assert Source(language, text.encode(), new_from=len(text) - 1).begun() == []


def test_the_last_statement_of_every_level():
    text = "a = 1\nif b:\n    c(1)\n    d(1)\n"
    found = Source("python", text.encode()).last()
    assert {(*run.starts, run.column) for run in found} == {(b"if", 0), (b"d", 4)}
    for more in ("x", "x = (\n", "x = '\\\n"):
        assert Source("python", (text + more).encode()).last() == []
    assert Source("python", text.encode(), new_from=len(text)).last() == []


@pytest.mark.parametrize(
    "mark", ["# the same\n", '"""\n' + "a line\n" * 3, "x = [\n" + "'a', 1,\n" * 3]
)
def test_lines_of_comments_strings_and_brackets(mark):
    text = mark if mark.startswith(('"', "x")) else mark * 3
    [run] = Source("python", text.encode()).lines.runs(min_copies=3)
    assert run.copies == 3
    assert Source("python", (text + "b").encode()).lines.runs(min_copies=3) == []
    assert Source("python", b"b = 1\n" * 5).lines.runs(min_copies=3) == []


def test_copies_before_an_offset_do_not_count():
    text = b"a = 1\n" * 5
    assert not Source("python", text, count_from=24).runs(min_copies=3)
    run = kinds(Source("python", text, count_from=6))["copy"]
    assert run.copies == 4
    comments = b"# a\n" * 5
    assert not Source("python", comments, count_from=12).lines.runs(min_copies=3)


@pytest.mark.parametrize(
    ("language", "text", "complete"),
    [
        ("python", "x = 1\n", True),
        ("python", "x = (1\n", False),
        ("python", "if x:\n", False),
        ("python", "x = 'a", False),
        ("python", "x = 1 +\n", False),
        ("python", "", False),
        ("python", "def f(x):\n    y = = 1\n    return x\n", True),  # wrong for good
        ("python", "def f(x):\n    return x\n    y = = 1\n", False),
        ("python", "if x = 1:\n    f(x)\n", True),
        ("c", "int f() { x = = 1; return 1; }\n", True),
        ("c", "int f() { return 1; }\n", True),
        ("c", "int f() { return 1;\n", False),
        ("rust", "fn f<'a>() {}\n", True),
    ],
)
def test_where_a_text_may_end(language, text, complete):
    assert Source(language, text.encode()).complete() is complete


@pytest.mark.parametrize(
    ("language", "head", "unit"),
    [
        ("python", "", "a = 1\nb(2)\n"),
        ("python", "class A:\n", "    def f(self):\n        if a:\n            return [1, 2]\n"),
        ("python", "if a:\n    b()\n", "elif a:\n    b()\n"),
        ("python", "x = [\n", "    [1, 2],\n"),
        ("c", "void m() {\n", "f(x);\n"),
        ("java", "class A {\n", "  void f() {\n    g();\n  }\n"),
        ("javascript", "if (a) { b(); }\n", "else if (a) { b(); }\n"),
        ("rust", "fn m() {\n", "    let x = 1;\n"),
        ("go", "package a\n", "func f() {\n\tg()\n}\n"),
    ],
)
def test_what_is_parsed_stays_short_and_says_the_same(language, head, unit):
    source = Source(language, head.encode())
    limit = len(head) + len(unit) * (module.WINDOW + module.SLACK + 2)
    for _ in range(120):
        source.append(unit.encode())
        runs = source.runs(min_copies=3)
        assert len(source.text) <= limit
    window = Source(language, (head + unit * (module.WINDOW + 2)).encode())
    assert runs == window.runs(min_copies=3)
    assert runs


def test_a_long_prompt_is_cut_to_what_matters():
    functions = "".join(f"def f{n}():\n" + "    a = b\n" * 60 for n in range(200))
    source = Source("python", functions.encode(), count_from=len(functions))
    for _ in range(4):
        source.append(b"c = 1\n")
        runs = source.runs(min_copies=3)
    assert len(source.text) < module.MAX_BYTES
    assert {(run.kind, run.copies) for run in runs} >= {("copy", 4), ("statement", 4)}
    assert source.count_from == bytes(source.text).index(b"c = 1")


@every_language
@pytest.mark.parametrize(
    "unit", ["(", "{", "1+", "-", "a.", "if(a){}else ", "\\", "'", "`", "\xff"]
)
def test_noise_is_survived(language, unit):
    source = Source(language, b"")
    for _ in range(3):
        source.append((unit * 700).encode("latin1") + b"\n")
        answers(source)
        source.complete()


@settings(max_examples=200, deadline=None)
@given(marks=st.lists(st.sampled_from("ab"), max_size=14), least=st.integers(2, 4))
def test_repeats_finds_a_pattern_where_there_is_one(marks, least):
    found = repeats(marks, least, 4)
    naive = [
        (period, at)
        for period in range(1, 5)
        for at in range(len(marks) - period * least + 1)
        if marks[at : at + period * least] == marks[at : at + period] * least
    ]
    assert (found is None) == (not naive)
    if found is not None:
        copies, period, at = found
        assert (period, at) in naive
        assert copies >= least
