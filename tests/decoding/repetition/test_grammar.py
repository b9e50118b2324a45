"""Statements and elements of finished and unfinished programs in eight languages."""

import pytest
from every_language import PROGRAMS, every_language
from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.decoding.repetition import grammar, languages
from linearize.errors import InputError, UsageError

IFS = {
    "python": "if a == 1:\n    f(b, 'c')\nif d == 2:\n    f(e, 'g')\n",
    "go": 'func m() {\n\tif a == 1 {\n\t\tf(b, "c")\n\t}\n\tif d == 2 {\n\t\tf(e, "g")\n\t}\n}\n',
}
for _name in ("java", "javascript", "typescript", "c", "cpp"):
    IFS[_name] = 'if (a == 1) {\n  f(b, "c");\n}\nif (d == 2) {\n  f(e, "g");\n}\n'
IFS["rust"] = 'fn m() {\n    if a == 1 { f(b, "c"); }\n    if d == 2 { f(e, "g"); }\n}\n'
for _name in ("c", "cpp"):
    IFS[_name] = f"void m() {{ {IFS[_name]} }}\n"
IFS["java"] = f"class A {{ void m() {{ {IFS['java']} }} }}\n"


@every_language
@pytest.mark.parametrize("level", ["statement", "terminal"])
def test_statements_that_differ_in_names_are_the_same(language, level):
    found = grammar.statements(IFS[language], language, level=level)
    ifs = [s for s in found if IFS[language][s.start : s.end].startswith("if")]
    calls = [s for s in found if IFS[language][s.start : s.end].startswith("f(")]
    assert len(ifs) == len(calls) == 2
    assert ifs[0].signature == ifs[1].signature != calls[0].signature == calls[1].signature
    assert [s.start for s in found] == sorted(s.start for s in found)


@every_language
def test_elements_are_classes_of_terminals(language):
    found = grammar.elements(IFS[language], language)
    assert found.count("if") == 2
    assert {"(", ")", ",", "==", "NAME", "NUMBER", "STRING"} <= set(found)
    assert not {"a", "1", "'c'", '"c"'} & set(found)
    later = grammar.elements(IFS[language], language, start=IFS[language].rindex("if"))
    assert later == found[-len(later) :]
    assert later[0] == "if"


@every_language
def test_whole_programs_are_well_formed_and_cut_ones_lose_nothing_before_the_cut(language):
    text = PROGRAMS[language]
    assert grammar.well_formed(text, language)

    @settings(max_examples=40, deadline=None)
    @given(cut=st.integers(0, len(text)))
    def check(cut):
        found = grammar.statements(text[:cut], language)
        assert all(s.start < cut and s.signature for s in found)
        assert len(grammar.elements(text[:cut], language)) <= len(text)

    check()


@every_language
@pytest.mark.parametrize("opening", ["f(", "[", "{", "x = '", "/* ", "1 + ", "if ("])
def test_an_open_end_is_not_well_formed_but_readable(language, opening):
    if opening == "/* " and language == "python":
        pytest.skip("no such comment")
    text = PROGRAMS[language] + opening
    before = [s.signature for s in grammar.statements(PROGRAMS[language], language)]
    if opening != "x = '":  # a lifetime in Rust
        assert not grammar.well_formed(text, language)
    after = [s.signature for s in grammar.statements(text, language)]
    assert after[: len(before) // 2] == before[: len(before) // 2]


@every_language
@pytest.mark.parametrize("unit", ["(", "{", "1+", "-", "a.", "if(a){}else "])
def test_thousands_of_levels_are_read(language, unit):
    text = unit * 2000
    grammar.statements(text, language, level="terminal")
    grammar.statements(text, language)
    grammar.elements(text, language)


def test_languages_that_are_not_there(monkeypatch):
    with pytest.raises(UsageError, match=r"pyhton.*did you mean.*python"):
        languages.parser("pyhton")
    languages.parser.cache_clear()
    monkeypatch.setitem(__import__("sys").modules, "tree_sitter_go", None)
    with pytest.raises(InputError, match=r"linearize\[rpg-go\]"):
        grammar.statements("x", "go")
    assert "go" not in languages.installed()


def test_the_language_is_guessed_by_its_words():
    texts = {"python": "def f(self):\n    from a import b\n", "c": "#include <a.h>\nint main(void)"}
    texts |= {"go": "package main\nfunc f() { x := 1 }", "rust": "pub fn f() { let mut x = 1; }"}
    texts |= {"java": "public static void f(String a) { private final int b; }"}
    for name, text in texts.items():
        if name in languages.installed():
            assert languages.guess(text.encode()) == name
    assert languages.guess(b"nothing of the kind") is None
