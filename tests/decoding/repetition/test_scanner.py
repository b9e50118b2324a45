"""The lexical state at the end of a text, in every language and cut anywhere."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.decoding.repetition.languages import LANGUAGES, find
from linearize.decoding.repetition.scanner import Scanner

BITS = [
    '"',
    "'",
    "`",
    '"""',
    "'''",
    "\\",
    "\n",
    "/",
    "*",
    "//",
    "/*",
    "*/",
    "#",
    "(",
    ")",
    "[",
    "]",
]
BITS += ["{", "}", "a", " ", ",", ";", ":", "'a'", "&'a ", "é", "🙂", "\r\n", "= /"]


def scan(language, *parts):
    scanner = Scanner(find(language))
    for part in parts:
        scanner.feed(part)
    return scanner


def state(scanner):
    closers, boundary = scanner.closers, scanner.at_boundary
    known = scanner.inside, closers, scanner.last, scanner.newline, scanner.separators
    return *known, boundary, scanner.ending, scanner._held


@pytest.mark.parametrize("language", LANGUAGES)
def test_any_cut_gives_the_same_state(language):
    @settings(max_examples=300, deadline=None)
    @given(bits=st.lists(st.sampled_from(BITS), max_size=12), data=st.data())
    def check(bits, data):
        text = "".join(bits).encode()
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=4)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert state(scan(language, *parts)) == state(scan(language, text))

    check()


@pytest.mark.parametrize(
    ("language", "text", "ending"),
    [
        ("python", "f([{x", "}])"),
        ("python", "x = 'a(", "'"),
        ("python", 'x = "', '"'),
        ("python", 'x = ""', ""),
        ("python", 'x = """a"', '""'),
        ("python", 'f("""a""" + """b', '""")'),
        ("python", "f('a\\", "\\')"),
        ("python", "f(  # (", "\n)"),
        ("python", "x = 'open\nf(", ")"),
        ("python", "r'\\'", "'"),
        ("go", "x := `\\`; f(", ")"),
        ("go", "x := `a\nb(", "`"),
        ("java", 'String s = """\n a "b', '"""'),
        ("java", "char c = '(';", ""),
        ("javascript", "f(/['(]/, ", ")"),
        ("javascript", "x = (a / b + '", "')"),
        ("javascript", "x = `a ${b", "`"),
        ("typescript", "/* { *", "/"),
        ("c", '#include "a.h"\nint a[] = {', "}"),
        ("c", "/* ( */ f(g(", "))"),
        ("cpp", "// (\nf(", ")"),
        ("rust", "fn f<'a>(x: &'a str", ")"),
        ("rust", "f('(', '\\'', '\"', [", "])"),
        ("rust", "f('é', '🙂', (", "))"),
        ("rust", 'x = "a\n(', '"'),
    ],
)
def test_what_is_open_is_known(language, text, ending):
    assert scan(language, text.encode()).ending == ending.encode()


def test_an_outer_bracket_closes_what_was_left_open_in_it():
    scanner = scan("c", b"void f() { g((a; }")
    assert scanner.closers == []
    assert scanner.separators == 1
    assert scan("c", b"a ) ] }").closers == []


@pytest.mark.parametrize(
    ("language", "text", "boundary"),
    [
        ("python", "", True),
        ("python", "x", False),
        ("python", "x\n", True),
        ("python", "x = 1 + \\\n", False),
        ("python", "x = 1 + \\\n\n", True),
        ("python", "if x:", False),
        ("python", "f(a,", True),
        ("python", "x = '''a\n", False),
        ("python", "x  # a\n  ", True),
        ("c", "f();", True),
        ("c", "f()", False),
        ("c", "if (x) {", True),
        ("c", "/* a\n", False),
        ("rust", "x => 1,", True),
    ],
)
def test_where_something_may_begin(language, text, boundary):
    assert scan(language, text.encode()).at_boundary is boundary


def test_separators_are_counted_in_the_innermost_bracket():
    scanner = scan("c", b"int main() { f(a, b, c")
    assert scanner.separators == 2
    scanner.feed(b"); g();\n\n if (x) { }")
    assert scanner.separators == 4, "two semicolons, a line and a block"


def test_a_copy_goes_its_own_way():
    scanner = scan("python", b"f(")
    copy = scanner.fork()
    copy.feed(b"[1, 2")
    assert state(scanner) == state(scan("python", b"f("))
    assert state(copy) == state(scan("python", b"f([1, 2"))
