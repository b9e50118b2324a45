"""Patterns in a list of siblings: a block of them that stands several times in a row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

MAX_PERIOD = 8  # siblings


@dataclass(frozen=True)
class Run:
    """`copies` blocks of `period` statements or elements that are equal in some way.

    - `kind`: in what way. "copy": word for word; "statement": with names, numbers and strings as
      classes; "shape": with expressions collapsed; "recent": word for word, but not side by side;
      "begun": word for word, the last copy only up to the cursor; "last": one copy, the statement
      before the cursor; "element": word for word, between brackets.
    - `starts`: how the blocks begin: the first terminal of each, as written.
    - `column`: where a further copy has to begin, in languages where indentation decides.
    """

    kind: str
    copies: int
    period: int
    starts: frozenset[bytes]
    column: int | None
    example: str

    @property
    def reason(self) -> str:
        """For people."""
        if self.kind == "last":
            return f"the last statement, soon after a loop: {self.example}"
        what = "element" if self.kind == "element" else "statement"
        unit = what if self.period == 1 else f"block of {self.period} {what}s"
        like = {"statement": "same form", "shape": "same shape", "recent": "not side by side"}
        like["begun"] = "the last one unfinished"
        how = like.get(self.kind, "word for word")
        return f"{self.copies} copies of one {unit}, {how}: {self.example}"


def repeats(marks: list[Any], min_copies: int, longest: int) -> tuple[int, int, int] | None:
    """The pattern that another mark could repeat: (copies, period, index of its latest run).

    `marks` come the latest first. A pattern is a block of up to `longest` marks that stands
    `min_copies` times in a row somewhere among them; all its copies count, because a loop that is
    interrupted now and then is still a loop. None if there is no pattern.
    """
    best = None
    if len(set(marks)) == len(marks):
        return None
    for period in range(1, min(longest, len(marks) // min_copies) + 1):
        same, run = 0, None
        for at in range(len(marks) - period - 1, -1, -1):
            same = same + 1 if marks[at] == marks[at + period] else 0
            if same >= (min_copies - 1) * period:
                run = at
        if run is not None:
            copies = _occurrences(marks, marks[run : run + period])
            if best is None or copies > best[0]:
                best = copies, period, run
    return best


def _occurrences(marks: list[Any], block: list[Any]) -> int:
    found, at = 0, 0
    while at <= len(marks) - len(block):
        match = marks[at : at + len(block)] == block
        found += match
        at += len(block) if match else 1
    return found
