"""Programming languages that grammar-based remedies and metrics know: one row each.

A row names the tree-sitter wheel, which node kinds hold lists of statements, and the few lexical
facts needed to tell whether a position lies in a string, a comment or a bracket. Wheels are
optional extras, imported on first use; nothing is ever downloaded.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from linearize.errors import InputError, UsageError, suggest


@dataclass(frozen=True)
class Language:
    """What differs from language to language.

    - `module`, `function`: of the tree-sitter wheel; `extra`: of this package.
    - `blocks`: node kinds whose named children are statements.
    - `strings`: (opening, closing, may span lines); `raw`: openings of those without escapes.
    - `line_comment`, `block_comment`: how comments begin, and end.
    - `regexes`: a slash may open a regular expression; `lifetimes`: a quote need not open anything.
    - `trailing_commas`: a comma may stand before any closing bracket, not just before a brace.
    - `indented`: indentation, not braces, says which block a line belongs to.
    - `keywords`: words that few other languages start a line with; for guessing.
    """

    name: str
    module: str
    blocks: frozenset[str]
    function: str = "language"
    strings: tuple[tuple[bytes, bytes, bool], ...] = ((b'"', b'"', False), (b"'", b"'", False))
    raw: frozenset[bytes] = frozenset()
    line_comment: bytes = b"//"
    block_comment: tuple[bytes, bytes] | None = (b"/*", b"*/")
    regexes: bool = False
    lifetimes: bool = False
    trailing_commas: bool = True
    indented: bool = False
    keywords: frozenset[bytes] = frozenset()

    @property
    def extra(self) -> str:
        """The extra of this package that installs the grammar."""
        return f"rpg-{self.name}"


def _blocks(names: str) -> frozenset[str]:
    return frozenset(names.split())


def _words(names: str) -> frozenset[bytes]:
    return frozenset(names.encode().split())


_QUOTES = ((b"`", b"`", True), (b'"', b'"', False), (b"'", b"'", False))
_SCRIPT_BLOCKS = "program statement_block class_body switch_body switch_case switch_default"
_C_BLOCKS = "translation_unit compound_statement field_declaration_list enumerator_list"

LANGUAGES: dict[str, Language] = {
    language.name: language
    for language in (
        Language(
            "python",
            "tree_sitter_python",
            _blocks("module block"),
            strings=(
                (b'"""', b'"""', True),
                (b"'''", b"'''", True),
                (b'"', b'"', False),
                (b"'", b"'", False),
            ),
            line_comment=b"#",
            block_comment=None,
            indented=True,
            keywords=_words("def elif import from self except None True lambda with"),
        ),
        Language(
            "go",
            "tree_sitter_go",
            _blocks("source_file block statement_list expression_case field_declaration_list"),
            strings=_QUOTES,
            raw=frozenset({b"`"}),
            keywords=_words("func package := defer chan nil fmt. struct go"),
        ),
        Language(
            "java",
            "tree_sitter_java",
            _blocks(
                "program block class_body interface_body enum_body constructor_body switch_block "
                "switch_block_statement_group"
            ),
            strings=((b'"""', b'"""', True), (b'"', b'"', False), (b"'", b"'", False)),
            trailing_commas=False,
            keywords=_words("public private static void final extends throws String System."),
        ),
        Language(
            "javascript",
            "tree_sitter_javascript",
            _blocks(_SCRIPT_BLOCKS),
            strings=_QUOTES,
            regexes=True,
            keywords=_words("function const let => === var require( console."),
        ),
        Language(
            "typescript",
            "tree_sitter_typescript",
            _blocks(f"{_SCRIPT_BLOCKS} interface_body object_type enum_body"),
            function="language_typescript",
            strings=_QUOTES,
            regexes=True,
            keywords=_words("const let => === interface string number readonly export function"),
        ),
        Language(
            "c",
            "tree_sitter_c",
            _blocks(_C_BLOCKS),
            trailing_commas=False,
            keywords=_words("#include int void char* printf( struct sizeof( static NULL"),
        ),
        Language(
            "cpp",
            "tree_sitter_cpp",
            _blocks(f"{_C_BLOCKS} declaration_list"),
            trailing_commas=False,
            keywords=_words("#include std:: cout namespace template class auto public: using int"),
        ),
        Language(
            "rust",
            "tree_sitter_rust",
            _blocks("source_file block declaration_list field_declaration_list match_block"),
            strings=((b'"', b'"', True),),
            lifetimes=True,
            keywords=_words("fn let mut impl pub -> match use &str crate::"),
        ),
    )
}


def find(name: str) -> Language:
    """The row of a language. Raises `UsageError` for an unknown one."""
    if name not in LANGUAGES:
        known = ", ".join(LANGUAGES)
        raise UsageError(f"no grammar for language '{name}'{suggest(name, LANGUAGES)} ({known})")
    return LANGUAGES[name]


@cache
def parser(name: str) -> Any:
    """A `tree_sitter.Parser` for a language.

    Raises `UsageError` for an unknown language, `InputError` if its grammar is not installed.
    """
    language = find(name)
    try:
        import tree_sitter

        module = importlib.import_module(language.module)
    except ImportError as error:
        raise InputError(
            f"the grammar for {name} is not installed ({error}); "
            f'pip install "linearize[{language.extra}]", or [rpg-all] for every language'
        ) from error
    return tree_sitter.Parser(tree_sitter.Language(getattr(module, language.function)()))


def installed() -> list[str]:
    """Languages whose grammar can be loaded here."""
    names = []
    for name in LANGUAGES:
        try:
            parser(name)
        except InputError:
            continue
        names.append(name)
    return names


def guess(text: bytes) -> str | None:
    """The installed language whose words a text uses most; None where no word is found.

    Words decide because they are cheap and because unfinished code parses badly everywhere.
    """
    found = {
        name: sum(text.count(word) for word in LANGUAGES[name].keywords) for name in installed()
    }
    best = max(found, key=lambda name: found[name], default=None)
    return best if best is not None and found[best] else None
