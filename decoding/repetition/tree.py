"""Neighbours in tree-sitter's trees, as seen from a cursor at the end of a growing text."""

from __future__ import annotations

from typing import Any

from .grammar import COMPOUND


def first(node: Any) -> Any | None:
    """The first named child."""
    return node.named_child(0) if node.named_child_count else None


def last_before(node: Any, end: int) -> Any | None:
    """The last named child that begins before the cursor."""
    children = (node.named_child(i) for i in range(node.named_child_count - 1, -1, -1))
    return next((c for c in children if c.start_byte < end), None)


def unclosed(node: Any, blocks: frozenset[str], end: int) -> Any | None:
    """A block without braces at the end of another, such as that of a case."""
    inner = last_before(node, end)
    if inner is None or inner.type not in blocks or not inner.child_count:
        return None
    return inner if inner.child(inner.child_count - 1).type != "}" else None


def last(node: Any, end: int, *, inclusive: bool) -> Any | None:
    """The last child that the cursor lies in."""
    for index in range(node.child_count - 1, -1, -1):
        child = node.child(index)
        if child.start_byte < end:
            inside = child.end_byte >= end if inclusive else child.end_byte > end
            return child if inside and child.child_count else None
    return None


def compound(node: Any) -> bool:
    """A node that may hold statements."""
    return node.child_count > 0 and COMPOUND.search(node.type) is not None


def branches(node: Any) -> bool:
    """A statement with clauses, such as an if with its elif branches."""
    end = node.child(node.child_count - 1) if node.child_count else None
    return end is not None and "clause" in end.type
