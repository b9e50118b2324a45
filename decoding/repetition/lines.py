"""Lines of strings, comments and brackets: repetition where the grammar has no statements."""

from __future__ import annotations

import re
from collections import Counter, deque

from .patterns import Run
from .scanner import Scanner

WINDOW = 16  # lines
_PART = re.compile(rb"[^\n]*\n|[^\n]+")
_WORD = re.compile(rb"\w+|[^\s\w]+")


class Lines:
    """Follows a text line by line, and scans it on the way."""

    def __init__(self, scanner: Scanner) -> None:
        self.scanner = scanner
        self._comment = scanner.language.line_comment
        self._line = b""  # what there is of the last one
        self._in_text = False  # it began in a string, comment or bracket
        self._recent: deque[bytes | None] = deque(maxlen=WINDOW)  # None for code

    def fork(self, scanner: Scanner) -> Lines:
        """An independent copy that goes on with `scanner`."""
        copy = object.__new__(Lines)
        copy.__dict__.update(self.__dict__, scanner=scanner, _recent=self._recent.copy())
        return copy

    def append(self, data: bytes, *, count: bool = True) -> None:
        """The text goes on; `count`: its lines can be copies."""
        for part in _PART.findall(data):
            self.scanner.feed(part)
            self._line += part
            if part.endswith(b"\n"):
                line = b" ".join(self._line.split())
                if line and count:
                    # A line of mere brackets says nothing.
                    prose = self._in_text and re.search(rb"\w", line)
                    self._recent.append(line if prose or line.startswith(self._comment) else None)
                self._line, self._in_text = b"", self._inside()

    def _inside(self) -> bool:
        """In a string, a comment, or a bracket that holds no statements."""
        scanner = self.scanner
        braces = b"" if scanner.language.indented else b"}"
        return scanner.inside is not None or scanner.closers[-1:] not in ([], [braces])

    def runs(self, *, min_copies: int) -> list[Run]:
        """Lines that stand at least `min_copies` times among the last ones, if a line
        could begin at the cursor.
        """
        if self._line.strip():
            return []
        found = []
        for line, copies in Counter(self._recent).items():
            if line is not None and copies >= min_copies:
                starts = frozenset(_WORD.findall(line)[:1])
                example = line.decode(errors="replace")
                found.append(Run("line", copies, 1, starts, None, example))
        return found
