"""Single functions as documents of their own: text that ends where what it says is said."""

from __future__ import annotations

import ast
import textwrap
import warnings
from collections.abc import Iterator


def functions(text: str) -> Iterator[str]:
    """The functions of a Python source, those of its classes included, each without indentation.

    With their decorators, in the order of the source, line for line; functions inside functions
    are part of these. None where `text` is not Python. Left out are those that do not stand
    alone: on a line with something else, or with a string that reaches left of the function.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sources that are not ours: invalid escapes
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return
    lines = text.split("\n")
    for node in _defined(tree):
        first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
        found = textwrap.dedent("\n".join(lines[first - 1 : node.end_lineno]))
        if found.startswith(("def ", "async def ", "@")):
            yield found


def _defined(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        elif isinstance(child, ast.stmt | ast.ExceptHandler):  # class, or if, try around them
            yield from _defined(child)
