"""Lists of siblings in a syntax tree, and the runs of equal structure at their ends."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from . import tree
from .patterns import MAX_PERIOD, Run, repeats

if TYPE_CHECKING:
    from .source import Source

WINDOW = 24  # siblings looked back at


@dataclass(frozen=True)
class Siblings:
    """Children of one node: statements, elements of a bracket, or clauses.

    `open`: another one could begin at the cursor.
    """

    parent: Any
    column: int | None
    open: bool = True
    elements: bool = False
    clauses: bool = False

    def nodes(self, end: int) -> list[Any]:
        """Those before the cursor, in order."""
        return [
            node
            for node in self.parent.named_children
            if node.start_byte < end and (not self.clauses or "clause" in node.type)
        ]

    def runs(self, source: Source, end: int, min_copies: int) -> list[Run]:
        """The pattern with the most copies, for each way of being equal."""
        nodes = [n for n in self.nodes(end)[-WINDOW:] if n.start_byte >= source.count_from]
        nodes.reverse()
        found = []
        for kind in ("element",) if self.elements else ("copy", "statement", "shape"):
            least = max(2, min_copies - 1) if kind == "copy" else min_copies
            if len(nodes) < least:
                continue
            marks = [self._mark(source, node, end, kind) for node in nodes]
            pattern = repeats(marks, least, MAX_PERIOD)
            if pattern is not None:
                copies, period, at = pattern
                block = nodes[at : at + period * least]
                new = nodes[at].start_byte >= source.new_from
                if new and any("comment" not in n.type for n in block):
                    found.append(self.run(source, kind, copies, period, block))
        return found

    def _mark(self, source: Source, node: Any, end: int, kind: str) -> Any:
        return source.mark(node, end, kind)

    def run(self, source: Source, kind: str, copies: int, period: int, block: list[Any]) -> Run:
        firsts = block[period - 1 :: period]  # in order of time a block begins with its last
        starts, example = source.starts(firsts), source.example(firsts[-1])
        return Run(kind, copies, period, starts, self.column, example)


class ElseIfs(Siblings):
    """Branches of an if statement at the end of a block, where else-ifs are nested, not listed."""

    def nodes(self, end: int) -> list[Any]:
        chain = []
        node = tree.last_before(self.parent, end)
        while node is not None:
            if node.type in ("expression_statement", "else_clause"):  # mere wrappings
                node = tree.first(node)
                continue
            if node.type not in ("if_statement", "if_expression"):
                break
            chain.append(node)
            node = node.child_by_field_name("alternative")
        return chain

    def _mark(self, source: Source, node: Any, end: int, kind: str) -> Any:
        parts = (node.child_by_field_name(name) for name in ("condition", "consequence"))
        return tuple(part and source.mark(part, end, kind) for part in parts)

    def run(self, source: Source, kind: str, copies: int, period: int, block: list[Any]) -> Run:
        run = super().run(source, kind, copies, period, block)
        return replace(run, starts=frozenset({b"else"}))
