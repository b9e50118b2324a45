"""The lexer inside RPG's public decoder: vocabulary pieces in, kinds and lines out.

Written from the description in the project's notes (no grammar, Python only, Llama-style pieces),
and incremental: a piece can change the last kind and nothing before it.
"""

from __future__ import annotations

import re
from copy import copy

NEWLINE = "\n"
KEYWORDS = frozenset(
    {"and", "as", "assert", "async", "await", "break", "class", "continue", "def", "del", "elif"}
    | {"else", "except", "False", "finally", "for", "from", "global", "if", "import", "in", "is"}
    | {"lambda", "None", "nonlocal", "not", "or", "pass", "print", "raise", "return", "test"}
    | {"True", "try", "while", "with", "yield"}
)
_WORD = re.compile(r"▁?[^\W\d]+")
_NUMBER = re.compile(r"▁?\d+")


class ReleasedLexer:
    """Kinds of the pieces fed so far, cut into lines.

    - `lines`: closed units, tuples of kinds; a newline is a unit of its own, an empty line an
      empty one.
    - `starts`: index of the piece where each unit of `units()` begins.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, ...]] = []
        self.starts: list[int] = [0]
        self._line: list[str] = []
        self._pieces = 0
        self._until: str | None = None  # what ends the comment, list or string we are in
        self._run: re.Pattern[str] | None = None  # the last kind may go on in the next piece

    def units(self) -> list[tuple[str, ...]]:
        """All units; the open line is the last one, unless it is empty."""
        return [*self.lines, tuple(self._line)] if self._line else self.lines

    def copy(self) -> ReleasedLexer:
        """An independent copy."""
        other = copy(self)
        other.lines, other.starts, other._line = [*self.lines], [*self.starts], [*self._line]
        return other

    def feed(self, piece: str) -> None:
        """Read the next piece (`<0x0A>` as a newline)."""
        self._pieces += 1
        if self._until is not None and self._goes_on(piece):
            return
        if piece == NEWLINE:
            self._close_line()
            return
        if self._run is not None and not piece.startswith("▁") and self._run.fullmatch(piece):
            if self._run is _WORD:
                self._line[-1] = "NAME"  # `del` was a keyword until `ta` followed
            return
        self._line.append(self._kind(piece))

    def _goes_on(self, piece: str) -> bool:
        """Whether the piece belongs to the comment, list or string that is open."""
        if self._until == NEWLINE:
            if piece != NEWLINE:
                return True
            self._until = None
            return False
        if self._until in piece:
            self._until = None
        return True

    def _close_line(self) -> None:
        self._run = None
        newline = self._pieces - 1
        self.lines += [tuple(self._line), (NEWLINE,)]
        self.starts += [newline, newline + 1]
        self._line = []

    def _kind(self, piece: str) -> str:
        """The kind a piece begins; sets how far it reaches."""
        self._run = None
        for quotes in ('"""', "'''"):
            if quotes in piece:
                self._until = quotes
                return "COMMENT"
        if piece.lstrip("▁").startswith("#"):
            self._until = NEWLINE
            return "COMMENT"
        if "[" in piece:
            self._until = None if "]" in piece else "]"
            return "LIST"
        quote = next((c for c in piece if c in "\"'"), None)
        if quote is not None:
            self._until = quote if piece.count(quote) % 2 else None
            return "STRING"
        if _NUMBER.fullmatch(piece):
            self._run = _NUMBER
            return "NUMBER"
        if _WORD.fullmatch(piece):
            self._run = _WORD
            return piece if piece.removeprefix("▁") in KEYWORDS else "NAME"
        return piece
