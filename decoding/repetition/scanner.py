"""Where the end of a growing text lies: in a string, a comment, which brackets are open.

A little lexing instead of a parse at every token, and the means to close an unfinished text so
that a parser sees its structure: tree-sitter puts everything around an open bracket into one ERROR
node, and nothing once the bracket is closed.
"""

from __future__ import annotations

import re
from functools import cache

from .languages import Language

_CLOSER = {b"(": b")", b"[": b"]", b"{": b"}"}
_BOUNDARY = (b";", b"{", b"}", b",", b"(", b"[", b":")


class Scanner:
    """Feed it bytes; it knows the lexical state after them.

    - `inside`: None in code, else the bytes that end the string or comment.
    - `closers`: closing brackets that are due, innermost last.
    - `last`: the last byte of code that is not blank; `newline`: a line has ended since.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.inside: bytes | None = None
        self.comment = False
        self.closers: list[bytes] = []
        self.last = b""
        self.newline = True
        self._lines = False  # the open string may span lines
        self._held = b""  # what may be the beginning of a delimiter

    def fork(self) -> Scanner:
        """An independent copy."""
        copy = object.__new__(Scanner)
        copy.__dict__.update(self.__dict__, closers=list(self.closers))
        return copy

    @property
    def at_boundary(self) -> bool:
        """A statement, clause or element may begin here."""
        if self.inside is not None or self._held:
            return False
        return self.newline or self.last in _BOUNDARY

    @property
    def ending(self) -> bytes:
        """What would close the open string or comment and every open bracket."""
        return (self.inside or b"") + b"".join(reversed(self.closers))

    def feed(self, data: bytes) -> None:
        """Append bytes."""
        data, self._held = self._held + data, b""
        at = 0
        while at < len(data):
            at = self._literal(data, at) if self.inside is not None else self._code(data, at)

    def _code(self, data: bytes, at: int) -> int:
        """Consume one lexical piece of code; returns where the next begins."""
        rules = _rules(self.language.name)
        found = rules.code.match(data, at)
        kind, text = found.lastgroup, found[0]
        if kind == "opening":
            if found.end() == len(data) and any(
                o.startswith(text) and len(o) > len(text) for o in rules.openings
            ):
                self._held = text  # `"` may become `"""`
                return len(data)
            self.inside, self._lines, self.comment = rules.openings[text]
            if not self.comment:
                self.last, self.newline = text[:1], False
        elif kind == "partial":
            if found.end() == len(data):
                self._held = text
            else:
                self.last, self.newline = text[:1], False
                return at + 1
        elif kind == "newline":
            self.newline = True
        elif kind == "open":
            self.closers.append(_CLOSER[text])
            self.last, self.newline = text, False
        elif kind == "close":
            if self.closers and self.closers[-1] == text:
                self.closers.pop()
            self.last, self.newline = text, False
        elif kind == "other":
            self.last, self.newline = text[-1:], False
        return found.end()

    def _literal(self, data: bytes, at: int) -> int:
        """Consume a string or comment up to its end, or all there is."""
        while at < len(data):
            if data[at : at + 1] == b"\\" and not self.comment:
                if at + 1 == len(data):
                    break
                at += 2
            elif data.startswith(self.inside, at):
                at += len(self.inside)
                self.newline = self.newline or self.inside == b"\n"
                self.inside = None
                return at
            elif self.inside.startswith(data[at:]):
                break
            else:
                if data[at : at + 1] == b"\n" and not self._lines:
                    self.inside, self.newline = None, True  # a string that never closed
                    return at + 1
                skipped = _PLAIN.match(data, at + 1)
                at = skipped.end()
        self._held = data[at:]
        return len(data)


_PLAIN = re.compile(rb"[A-Za-z0-9_ ,.:=()<>+]*")


class _Rules:
    """A language's lexical facts as one regular expression."""

    def __init__(self, language: Language) -> None:
        self.openings = {o: (c, lines, False) for o, c, lines in language.strings}
        self.openings[language.line_comment] = (b"\n", True, True)
        if language.block_comment:
            self.openings[language.block_comment[0]] = (language.block_comment[1], True, True)
        longest_first = sorted(self.openings, key=len, reverse=True)
        opening = b"|".join(map(re.escape, longest_first))
        first = b"".join({re.escape(o[:1]) for o in self.openings})
        self.code = re.compile(
            rb"(?P<opening>%s)|(?P<partial>[%s])|(?P<newline>\n)|(?P<open>[(\[{])|(?P<close>[)\]}])"
            rb"|(?P<blank>[ \t\r\x0b\x0c]+)|(?P<other>[^%s\n(\[{)\]} \t\r\x0b\x0c]+)"
            % (opening, first, first),
            re.DOTALL,
        )


@cache
def _rules(name: str) -> _Rules:
    from .languages import find

    return _Rules(find(name))
