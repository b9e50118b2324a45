"""Source code while it is being written, and the runs of equal structure at its end.

- A text is scanned byte by byte and parsed only where a statement or element may begin; parsing is
  incremental, so that costs the same in a long text as in a short one.
- A run is the end of a list of siblings (statements of a block, elements of a bracket, branches of
  an if) that repeats with some period. There is one list per nesting level around the cursor.
- What lies before the cursor is settled: a signature is computed once and kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any

from . import tree
from .grammar import COMPOUND, leaf
from .languages import find, parser
from .lines import Lines
from .patterns import Run
from .scanner import Scanner
from .siblings import WINDOW, ElseIfs, Siblings

SLACK = 8  # siblings that pile up before some are dropped
MAX_BYTES = 6_000  # of text that is parsed, roughly
STATEMENTS = 16  # of all levels looked back at
MAX_DEPTH = 64  # nesting of expressions that signatures tell apart
_JUMP = re.compile(r"(return|break|continue|pass|raise|throw)_statement$")
_STATEMENT = re.compile(r"_(statement|definition|declaration|item)$")
_BLANKS = b" \t\r\n\x0b\x0c"


class Source:
    """Code in one language that grows at its end.

    Args:
        language: a name of `LANGUAGES`.
        text: what is there already.
        count_from: byte offset from which siblings count as copies.
        new_from: byte offset of the first thing that can make a run: one that ends before is not
            told of. None takes `count_from`.

    Raises `UsageError` for an unknown language, `InputError` if its grammar is not installed.
    """

    def __init__(
        self,
        language: str,
        text: bytes = b"",
        *,
        count_from: int = 0,
        new_from: int | None = None,
    ) -> None:
        self.language = find(language)
        self.count_from = count_from
        self.new_from = count_from if new_from is None else new_from
        self.text = bytearray()
        self.scanner = Scanner(self.language)
        self._parser = parser(language)
        self._tree: Any = None
        self._parsed = 0  # bytes of text in the tree
        self._closed = 0  # bytes that were appended to close it
        self._known: dict[tuple[int, int, str, str], int] = {}  # signatures of settled nodes
        self._asked: tuple[Any, list[Run]] = (None, [])  # the last question, and the answer
        self.lines = Lines(self.scanner)
        self.text += text
        self.lines.append(text[: self.new_from], count=False)
        self.lines.append(text[self.new_from :])

    def fork(self) -> Source:
        """An independent copy."""
        copy = object.__new__(Source)
        copy.__dict__.update(self.__dict__)
        copy.text = bytearray(self.text)
        copy.scanner = self.scanner.fork()
        copy.lines = self.lines.fork(copy.scanner)
        copy._tree = self._tree and self._tree.copy()
        copy._known = dict(self._known)
        return copy

    def append(self, data: bytes) -> None:
        """The text goes on."""
        self.text += data
        self.lines.append(data)

    @property
    def end(self) -> int:
        """Where the text ends but for blanks."""
        return len(self.text.rstrip(_BLANKS))

    @property
    def blanks(self) -> bytes:
        """Blanks at the end of the text."""
        return bytes(self.text[self.end :])

    def complete(self) -> bool:
        """The text could end here: nothing is open, and its last statement parses. What is wrong
        further up, in a statement around that one, no continuation can mend.
        """
        scanner = self.scanner
        if scanner.ending or scanner.last == b":":
            return False
        node = self._root()
        while (last := tree.last_before(node, self.end)) is not None:
            lists = node.type in self.language.blocks
            if (lists or (node.type == "ERROR" and _STATEMENT.search(last.type))) and (
                not last.has_error
            ):
                return True
            node = last
        return False

    def runs(self, *, min_copies: int, newline: bool = False) -> list[Run]:
        """Runs of at least `min_copies` (one less where they are equal word for word) that another
        sibling at the cursor could prolong.

        `newline`: as if a line ended at the cursor.
        """
        scanner = self.scanner
        if scanner.inside is not None or not (newline or scanner.at_boundary):
            return []
        if scanner.closers and scanner.separators < min_copies - 1:
            return []  # too few siblings; spares a parse
        newline = newline or scanner.newline
        if self._asked[0] != (self.end, newline, min_copies):
            end = self.end
            levels = list(self._levels(end, newline))
            found = [run for s in levels if s.open for run in s.runs(self, end, min_copies)]
            self._forget(levels, end)
            self._asked = (self.end, newline, min_copies), found
        return list(self._asked[1])

    def _forget(self, levels: list[Siblings], end: int) -> None:
        """Drop siblings that no run can reach any more: a parse takes as long as its text."""
        for siblings in levels:
            nodes = siblings.nodes(end)
            keep = WINDOW
            if len(self.text) > MAX_BYTES and not siblings.elements:
                keep = sum(node.start_byte > end - MAX_BYTES // 2 for node in nodes) or 1
            elif len(nodes) <= WINDOW + SLACK:
                continue
            if keep < len(nodes):
                self._cut(nodes[0].start_byte, nodes[-keep].start_byte)
                return

    def _cut(self, first: int, after: int) -> None:
        del self.text[first:after]
        for name in ("count_from", "new_from"):
            if (offset := getattr(self, name)) > first:
                setattr(self, name, max(first, offset - (after - first)))
        self._tree = None
        self._known = {}

    def _root(self) -> Any:
        """The tree of the text, closed where it is open."""
        if self._tree is None or self._parsed != len(self.text):
            ending = self.scanner.ending
            if self._tree is not None:
                # Points (row, column) only matter to those who read them; nobody here does.
                zero = (0, 0)
                self._tree.edit(
                    self._parsed,
                    self._parsed + self._closed,
                    len(self.text) + len(ending),
                    zero,
                    zero,
                    zero,
                )
            data = bytes(self.text) + ending
            self._tree = (
                self._parser.parse(data, self._tree) if self._tree else self._parser.parse(data)
            )
            self._parsed, self._closed = len(self.text), len(ending)
        return self._tree.root_node

    def _levels(self, end: int, newline: bool) -> Iterator[Siblings]:
        """The lists of siblings around the cursor, outermost first."""
        blocks, closers = self.language.blocks, self.scanner.closers
        by_line = self.language.indented and not closers
        node, innermost = self._root(), None
        while node is not None:
            innermost = node
            if node.type in blocks:
                column = self._column(node) if by_line else None
                yield Siblings(node, column, open=by_line and newline)
            elif by_line and tree.branches(node):
                column = self._column_at(node.start_byte)
                yield Siblings(node, column, open=newline, clauses=True)
            node = tree.last(node, end, inclusive=by_line)
        if not by_line:
            statements = innermost.type in blocks and (not closers or closers[-1] == b"}")
            yield Siblings(innermost, None, elements=not statements)
            while statements and (inner := tree.unclosed(innermost, blocks, end)) is not None:
                innermost = inner
                yield Siblings(innermost, None)
            if statements:
                yield ElseIfs(innermost, None)

    def _column(self, block: Any) -> int:
        first = tree.first(block)
        return self._column_at(first.start_byte) if first is not None else -1

    def _column_at(self, start: int) -> int:
        return start - (self.text.rfind(b"\n", 0, start) + 1)

    def _by_statement(self) -> bool:
        """A statement may begin at the cursor, not an element of a bracket."""
        closers = self.scanner.closers
        bracket = bool(closers) and (self.language.indented or closers[-1] != b"}")
        return self.scanner.at_boundary and not bracket

    def recent(self, *, min_copies: int) -> list[Run]:
        """Statements that stand at least `min_copies` times, word for word, among the last 16 of
        all levels. None inside a bracket, string or comment.
        """
        if not self._by_statement():
            return []
        end = self.end
        alike: dict[bytes, list[Any]] = {}
        for node in self._near(end):
            alike.setdefault(self.literal(node), []).append(node)
        found = []
        for nodes in alike.values():
            if len(nodes) >= min_copies and nodes[0].start_byte >= self.new_from:
                # Guards may well do the same: `return False` twice asks for an end, no more.
                few = len(nodes) == min_copies and _JUMP.match(nodes[0].type)
                starts = frozenset() if few else self.starts(nodes)
                example = self.example(nodes[0])
                found.append(Run("recent", len(nodes), 1, starts, None, example))
        return found

    def last(self) -> list[Run]:
        """The statement before the cursor, on each nesting level where another could follow."""
        if not self._by_statement():
            return []
        end, found = self.end, []
        for siblings in self._levels(end, self.scanner.newline):
            if not siblings.open or siblings.elements or isinstance(siblings, ElseIfs):
                continue
            nodes = siblings.nodes(end)[-1:]
            if nodes and nodes[0].start_byte >= self.new_from:
                found.append(siblings.run(self, "last", 1, 1, nodes))
        return found

    def begun(self) -> list[Run]:
        """Statements around the cursor that read word for word like the beginning of an earlier
        one among the last 16: from their first word to the cursor, where a statement began there.
        """
        if not self._by_statement():
            return []
        end, found = self.end, []
        near = [n for n in self._near(end) if n.start_byte >= self.new_from and tree.compound(n)]
        for node in near:
            said = self.text[node.start_byte : end].split()
            if node.end_byte < end or len(said) == 1:  # over, or `try:`, which says nothing
                continue
            nexts = [n for other in near if (n := self._next(other, said, node)) is not None]
            if nexts:
                starts, example = self.starts(nexts), self.example(node)
                found.append(Run("begun", len(nexts) + 1, 1, starts, None, example))
        return found

    def _next(self, other: Any, said: list[bytes], node: Any) -> Any | None:
        """The leaf that follows the words `said` in `other`, if that begins with them."""
        stop = min(other.end_byte, node.start_byte)
        words = self.text[other.start_byte : stop].split(None, len(said))
        if other.type != node.type or len(words) <= len(said) or words[:-1] != said:
            return None
        at = stop - len(words[-1])
        leaf = other.descendant_for_byte_range(at, at + 1)
        return leaf if leaf.start_byte == at else None

    def _near(self, end: int) -> Iterator[Any]:
        return islice(self._statements(end), STATEMENTS)

    def _statements(self, end: int) -> Iterator[Any]:
        """Statements that count, the latest first; a compound one comes before its body."""
        stack = [(self._root(), False)]
        while stack:
            node, listed = stack.pop()
            if node.start_byte >= end or node.end_byte <= self.count_from:
                continue
            if listed and "comment" not in node.type and node.start_byte >= self.count_from:
                yield node
            inside = node.type in self.language.blocks
            stack += [(c, inside) for c in node.named_children if inside or tree.compound(c)]

    def mark(self, node: Any, end: int, kind: str) -> Any:
        """What equal siblings share; `kind` as in `Run`."""
        if "comment" in node.type:
            return "comment"
        if kind in ("copy", "element"):
            return self.literal(node)
        return self._signature(node, end, kind, MAX_DEPTH)

    def _signature(self, node: Any, end: int, kind: str, depth: int) -> int:
        """A number that equal structures share; see `grammar.signature` for the two levels."""
        key = (node.start_byte, node.end_byte, node.type, kind)
        if key in self._known:
            return self._known[key]
        value = hash((node.type, *self._parts(node, end, kind, depth)))
        if node.end_byte < end:
            self._known[key] = value  # else the node may go on
        return value

    def _parts(self, node: Any, end: int, kind: str, depth: int) -> Iterator[Any]:
        if not depth:
            return  # thousands of open brackets are noise, and deeper than Python may recurse
        shape = kind == "shape"
        for child in node.named_children if shape else node.children:
            if child.type in self.language.blocks:
                for inner in child.named_children:
                    if "comment" not in inner.type:
                        yield self._signature(inner, end, kind, depth - 1)
            elif shape:
                if COMPOUND.search(child.type):
                    yield self._signature(child, end, kind, depth - 1)
                elif node.type == "expression_statement":
                    yield child.type
            elif (terminal := leaf(child)) is None:
                yield from self._parts(child, end, kind, depth - 1)
            elif terminal:
                yield terminal

    def starts(self, nodes: list[Any]) -> frozenset[bytes]:
        """The first terminal of each, as written."""
        words = set()
        for node in nodes:
            while node.child_count:
                node = node.child(0)
            words.add(bytes(self.text[node.start_byte : node.end_byte]))
        return frozenset(words - {b""})

    def example(self, node: Any) -> str:
        """A node's text, for people."""
        line = self.literal(node).decode(errors="replace")
        return line if len(line) <= 40 else f"{line[:37]}..."

    def literal(self, node: Any) -> bytes:
        """The text of a node, runs of blanks as one."""
        return b" ".join(self.text[node.start_byte : node.end_byte].split())
