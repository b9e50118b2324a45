"""Where the end of a growing text lies: in a string, a comment, which brackets are open.

A little lexing instead of a parse at every token, and the means to close an unfinished text so
that a parser sees its structure: tree-sitter puts everything around an open bracket into one ERROR
node, and nothing once the bracket is closed.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from .languages import Language, find

_CLOSER = {b"(": b")", b"[": b"]", b"{": b"}"}
_BOUNDARY = (b";", b"{", b"}", b",", b"(", b"[", b":")
_BEFORE_REGEX = (b"", b"(", b",", b"=", b":", b"[", b"!", b"&", b"|", b"?", b"{", b";")
_CHARACTER = rb"'(?:[^\\'\n\x80-\xff]|[\xc2-\xf4][\x80-\xbf]{1,3})'"
_CHARACTER_BEGUN = re.compile(rb"'(?:[^\\'\n\x80-\xff]|[\xc2-\xf4][\x80-\xbf]{0,3})?")


@dataclass(frozen=True)
class _Literal:
    """A kind of string or comment: how it ends, and what may be in it."""

    end: bytes
    lines: bool = False
    escapes: bool = True
    comment: bool = False

    @property
    def plain(self) -> re.Pattern[bytes]:
        """What neither ends it nor needs a look."""
        return _plain(self.end[:1] + b"\n" + b"\\" * self.escapes)


class Scanner:
    """Feed it bytes; it knows the lexical state after them, however they were cut.

    - `closers`: closing brackets that are due, innermost last.
    - `separators`: commas, semicolons, lines and blocks that ended in the innermost bracket.
    - `last`: the last byte of code that is not blank; `newline`: a line has ended since.
    """

    def __init__(self, language: Language) -> None:
        self.language = language
        self.closers: list[bytes] = []
        self.last = b""
        self.newline = True
        self._separators = [0]  # outside of brackets, then in every open one
        self._literal: _Literal | None = None
        self._held = b""  # what may be the beginning of a delimiter

    def fork(self) -> Scanner:
        """An independent copy."""
        copy = object.__new__(Scanner)
        lists = {"closers": list(self.closers), "_separators": list(self._separators)}
        copy.__dict__.update(self.__dict__, **lists)
        return copy

    @property
    def inside(self) -> bytes | None:
        """None in code, else the bytes that end the string or comment."""
        return self._literal and self._literal.end

    @property
    def separators(self) -> int:
        return self._separators[-1]

    @property
    def at_boundary(self) -> bool:
        """A statement, clause or element may begin here."""
        if self._literal is not None or self._held:
            return False
        if self.language.indented and not self.closers:
            return self.newline
        return self.newline or self.last in _BOUNDARY

    @property
    def ending(self) -> bytes:
        """What would close the open string or comment and every open bracket."""
        due = self.inside or b""
        if self._held == b"\\":
            due = b"\\" + due
        elif self._literal is not None:
            due = due[len(self._held) :]
        elif self._held in _rules(self.language.name).openings:
            due = _rules(self.language.name).openings[self._held].end
        return due + b"".join(reversed(self.closers))

    def feed(self, data: bytes) -> None:
        """Append bytes."""
        data, self._held = self._held + data, b""
        at = 0
        while at < len(data):
            at = self._code(data, at) if self._literal is None else self._text(data, at)

    def _code(self, data: bytes, at: int) -> int:
        """Consume one lexical piece of code; returns where the next begins."""
        rules = _rules(self.language.name)
        if len(data) - at < rules.longest and rules.begun(data[at:]):
            self._held = data[at:]  # `"` may become `"""`
            return len(data)
        found = rules.code.match(data, at)
        kind, text = found.lastgroup, found[0]
        if kind == "newline":
            self._end_line()
        elif kind == "opening":
            self._literal = rules.openings[text]
        elif kind == "open":
            self.closers.append(_CLOSER[text])
            self._separators.append(0)
        elif kind == "close" and text in self.closers:
            self._close(text)
        elif kind == "other":
            self._separators[-1] += text.count(b",") + text.count(b";")
            if text == b"/" and self.language.regexes and self.last in _BEFORE_REGEX:
                self._literal = _Literal(b"/")
        if kind not in ("newline", "blank") and not (self._literal and self._literal.comment):
            self.last, self.newline = text[-1:], False
        return found.end()

    def _end_line(self) -> None:
        if self.last == b"\\" and not self.newline:
            self.last = b""  # the line goes on
            return
        self._separators[-1] += not self.newline
        self.newline = True

    def _close(self, closer: bytes) -> None:
        """Close the innermost such bracket; what was left open in it is over as well."""
        while True:
            self._separators.pop()
            if self.closers.pop() == closer:
                break
        self._separators[-1] += closer == b"}"

    def _text(self, data: bytes, at: int) -> int:
        """Consume a string or comment up to its end, or all there is."""
        literal = self._literal
        end, plain = literal.end, literal.plain
        while (at := plain.match(data, at).end()) < len(data):
            if data.startswith(end, at):
                self._literal = None
                if end == b"\n":
                    self._end_line()
                return at + len(end)
            if len(data) - at < len(end) and end.startswith(data[at:]):
                break
            if data[at : at + 1] == b"\\" and literal.escapes:
                if at + 1 == len(data):
                    break
                at += 2
            elif data[at : at + 1] == b"\n" and not literal.lines:
                self._literal = None  # a string that never closed
                return at  # the newline is code
            else:
                at += 1
        self._held = data[at:]
        return len(data)


class _Rules:
    """A language's lexical facts, made for matching."""

    def __init__(self, language: Language) -> None:
        comment = {"lines": True, "escapes": False, "comment": True}
        self.openings = {
            opening: _Literal(end, lines, opening not in language.raw)
            for opening, end, lines in language.strings
        }
        self.openings[language.line_comment] = _Literal(b"\n", **comment)
        if language.block_comment:
            opening, end = language.block_comment
            self.openings[opening] = _Literal(end, **comment)
        self._lifetimes = language.lifetimes
        self._beginnings = {o[:n] for o in self.openings for n in range(1, len(o))}
        # The longest character, `'` and four bytes, is longer than any opening.
        self.longest = 6 if language.lifetimes else max(map(len, self.openings))
        opening = b"|".join(map(re.escape, sorted(self.openings, key=len, reverse=True)))
        first = b"".join({re.escape(o[:1]) for o in self.openings})
        character = b""
        if language.lifetimes:
            self.openings[b"'"] = _Literal(b"'")
            opening += rb"|'(?=\\)"
            character, first = _CHARACTER + b"|", first + b"'"
        self.code = re.compile(
            rb"(?P<opening>%s)|(?P<newline>\n)|(?P<open>[(\[{])|(?P<close>[)\]}])"
            rb"|(?P<blank>[ \t\r\x0b\x0c]+)|(?P<other>%s[%s]|[^%s\n(\[{)\]} \t\r\x0b\x0c]+)"
            % (opening, character, first, first),
            re.DOTALL,
        )

    def begun(self, tail: bytes) -> bool:
        """The text's end could be the beginning of an opening, or of a character in Rust."""
        if tail in self._beginnings:
            return True
        return self._lifetimes and _CHARACTER_BEGUN.fullmatch(tail) is not None


@cache
def _rules(name: str) -> _Rules:
    return _Rules(find(name))


@cache
def _plain(special: bytes) -> re.Pattern[bytes]:
    return re.compile(b"[^%s]*" % re.escape(special))
