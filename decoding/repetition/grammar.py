"""Structure of source text: statements and their signatures, from tree-sitter's trees.

Two levels of detail (RPG, arXiv 2505.10402, section on reduction): at level "statement" a
statement is its kind and the kinds nested in it, expressions collapsed, as in the paper; at level
"terminal" it is its keywords and punctuation with identifiers, numbers and strings as classes.
Works on unfinished and on wrong code: ERROR nodes count as what they hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from .languages import Language, find, parser
from .scanner import Scanner

Level = Literal["statement", "terminal"]
# Children that may hold statements; whatever else a statement holds is an expression.
COMPOUND = re.compile(
    r"(_clause|_statement|_definition|_declaration|_block|_case|_arm|_item|_body|block|ERROR|"
    r"switch_default)$"
)


@dataclass(frozen=True)
class Statement:
    """`kind` is tree-sitter's; `start`, `end` are byte offsets; `signature` says what it is."""

    kind: str
    start: int
    end: int
    signature: str


def parse(text: bytes, language: str) -> Any:
    """The tree of a text that may stop anywhere: open strings and brackets are closed first."""
    scanner = Scanner(find(language))
    scanner.feed(text)
    return parser(language).parse(text + scanner.ending)


def statements(text: str | bytes, language: str, *, level: Level = "statement") -> list[Statement]:
    """All statements in document order, nested ones after the one that holds them.

    A compound statement's signature holds its header only; its body counts as `suite`, because
    the statements of the body are listed themselves.

    Raises `UsageError` for an unknown language, `InputError` if its grammar is not installed.
    """
    data = text.encode() if isinstance(text, str) else text
    row = find(language)
    found = []
    # Stacks here and below: a loop of brackets or dots nests deeper than Python may recurse.
    stack = [(parse(data, language).root_node, False)]
    while stack:
        node, listed = stack.pop()
        if listed and "comment" not in node.type and node.type not in ("ERROR", *row.blocks):
            mark = signature(node, row, level=level, nested=False)
            found.append(Statement(node.type, node.start_byte, node.end_byte, mark))
        inside = node.type in row.blocks
        stack.extend((child, inside) for child in reversed(node.named_children))
    return [s for s in found if s.start < len(data)]


def elements(text: str | bytes, language: str, *, start: int = 0) -> list[str]:
    """Grammar elements in order: keywords and punctuation literally, names, numbers and strings
    as classes, comments left out (the sequence G(x) of the paper).

    - `start`: leave out what begins before this byte.

    Raises as `statements` does.
    """
    data = text.encode() if isinstance(text, str) else text
    leaves = _leaves(parse(data, language).root_node)
    return [kind for kind, at in leaves if start <= at < len(data)]


def well_formed(text: str | bytes, language: str) -> bool:
    """True if the text as it stands parses without errors and missing parts."""
    data = text.encode() if isinstance(text, str) else text
    return not parser(language).parse(data).root_node.has_error


def signature(node: Any, language: Language, *, level: Level, nested: bool = True) -> str:
    """What kind of statement a node is, as a string to compare.

    `nested`: statements in its blocks are part of it; else a block is `suite`.
    """
    if level == "terminal":
        return " ".join(_terminals(node, language, nested))
    return _shape(node, language, nested)


def _terminals(node: Any, language: Language, nested: bool) -> Iterator[str]:
    stack = [node]
    while stack:
        node = stack.pop()
        if not nested and node.type in language.blocks:
            yield "suite"
        elif (kind := leaf(node)) is None:
            stack.extend(reversed(node.children))
        elif kind:
            yield kind


def _shape(node: Any, language: Language, nested: bool) -> str:
    text, stack = [], [node]  # of nodes, and of strings as they are
    while stack:
        node = stack.pop()
        if isinstance(node, str):
            text.append(node)
            continue
        text.append(node.type)
        parts = []
        for child in node.named_children:
            if child.type in language.blocks:
                parts.append(child if nested else "suite")
            elif COMPOUND.search(child.type):
                parts.append(child)
            elif node.type == "expression_statement" or node.type in language.blocks:
                parts.append(child.type)  # an assignment is not a call
        if parts:
            after = [item for part in parts for item in (",", part)]
            stack.extend([")", *reversed(after[1:]), "("])
    return "".join(text)


def _leaves(node: Any) -> Iterator[tuple[str, int]]:
    stack = [node]
    while stack:
        node = stack.pop()
        kind = leaf(node)
        if kind is None:
            stack.extend(reversed(node.children))
        elif kind:
            yield kind, node.start_byte


def leaf(node: Any) -> str | None:
    """The class of a terminal, "" for what does not count, None for a node with parts."""
    kind = node.type
    if "comment" in kind or node.is_missing:
        return ""
    if node.is_named:
        if "string" in kind or "char_literal" in kind or "rune" in kind:
            return "STRING"
        if node.child_count:
            return None
        if "identifier" in kind:
            return "NAME"
        if kind.endswith(("integer", "float", "number", "_literal", "integer_literal")):
            return "NUMBER"
        return kind
    return kind if not node.child_count else None
