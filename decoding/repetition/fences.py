"""Which part of a text is code: all of it, or what stands between code fences.

Only a whole line decides, so a text is looked at when a line ends, and only at its last line.
"""

from __future__ import annotations

import re

from . import languages
from .source import Source

_FENCE = re.compile(rb"^ {0,3}(?:```|~~~)\s*([A-Za-z+#]*)")
_NAMES = {b"py": "python", b"python3": "python", b"golang": "go", b"js": "javascript"}
_NAMES |= {b"ts": "typescript", b"c++": "cpp", b"rs": "rust", b"h": "c", b"cc": "cpp"}


class Fences:
    """Follows a text and knows the code at its end.

    Args:
        language: a name of `LANGUAGES` (everything is code), or "auto": the open fence's; without
            any fence the language that the prompt looks like.
        prompt: text that is there already.
    """

    def __init__(self, language: str, prompt: bytes) -> None:
        self._auto = language == "auto"
        self._language: str | None = language
        self._line = b""
        self._code = prompt  # what the source starts with
        self._prompt = len(prompt)  # bytes of it that are prompt
        self._open = self._seen = False
        if self._auto:
            self._language = None
            self.append(prompt)
            if not self._seen:
                self._language, self._code = languages.guess(prompt), prompt
            self._prompt = len(self._code)

    def fork(self) -> Fences:
        """An independent copy."""
        copy = object.__new__(Fences)
        copy.__dict__.update(self.__dict__)
        return copy

    def source(self, count_prompt: bool | str) -> Source | None:
        """The code that has begun, None in prose; `count_prompt` as in `RPG`."""
        if self._language is None:
            return None
        count_from = 0 if count_prompt else self._prompt
        new_from = 0 if count_prompt is True else self._prompt
        return Source(self._language, self._code, count_from=count_from, new_from=new_from)

    def append(self, data: bytes) -> bool:
        """The text goes on; True if code began or ended, so that `source` is to be asked anew."""
        if not self._auto:
            return False
        *lines, self._line = (self._line + data).split(b"\n")
        changed = False
        for number, line in enumerate(lines, start=1):
            fence = _FENCE.match(line)
            if fence is None:
                continue
            self._seen, self._open, changed = True, not self._open, True
            self._language = _language(fence[1]) if self._open else None
            # Code that came in the same piece as the fence's end of line.
            self._code, self._prompt = b"\n".join([*lines[number:], self._line]), 0
        return changed


def _language(name: bytes) -> str | None:
    """An installed language for the name written at a fence."""
    known = _NAMES.get(name.lower(), name.lower().decode())
    return known if known in languages.LANGUAGES and known in languages.installed() else None
