"""Repeats in a growing sequence: what the end of it agrees with, kept up to date token by token."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class SuffixMatches:
    """For every earlier position of a sequence, how much before it agrees with the end.

    `lengths[i]` is the largest k for which the k ids that end at `i` are the last k ids. Kept by
    one vector operation per appended id: O(n), a few microseconds at 2,000 ids, and enough for
    verbatim periods, banned n-grams and DRY alike.

    A wall ends agreement: no match reaches over it, from either side.
    """

    def __init__(self) -> None:
        self._size = 0
        self._ids = np.empty(64, dtype=np.int64)
        self._before = np.zeros(64, dtype=np.int32)  # [i + 1] for position i; [0] is always 0
        self._walls = np.zeros(64, dtype=bool)

    def __len__(self) -> int:
        return self._size

    @property
    def ids(self) -> np.ndarray:
        """int64 `[n]`."""
        return self._ids[: self._size]

    @property
    def walls(self) -> np.ndarray:
        """bool `[n]`."""
        return self._walls[: self._size]

    @property
    def lengths(self) -> np.ndarray:
        """int32 `[n - 1]`: the last position, which agrees with itself, is left out."""
        return self._before[1 : max(self._size, 1)]

    def append(self, token: int, *, wall: bool = False) -> None:
        """Put `token` at the end."""
        n = self._size
        if n + 1 == len(self._ids):
            self._ids, self._before, self._walls = (
                np.concatenate([a, np.zeros_like(a)])
                for a in (self._ids, self._before, self._walls)
            )
        if wall:
            self._before[: n + 1] = 0
        else:
            same = (self._ids[:n] == token) & ~self._walls[:n]
            self._before[1 : n + 1] = (self._before[:n] + 1) * same
        self._ids[n], self._before[n + 1], self._walls[n] = token, 0, wall
        self._size = n + 1

    def copy(self) -> SuffixMatches:
        """An independent copy."""
        other = SuffixMatches.__new__(SuffixMatches)
        other._size = self._size
        other._ids, other._before, other._walls = (
            a.copy() for a in (self._ids, self._before, self._walls)
        )
        return other

    def period(self, longest: int) -> int:
        """The smallest m in `1..longest` whose last m ids equal the m ids before them, or 0."""
        n = self._size
        longest = min(longest, n - 1)
        if longest < 1:
            return 0
        back = self.lengths[n - 1 - longest :][::-1]  # back[m - 1] belongs to period m
        found = back >= np.arange(1, longest + 1)
        first = int(found.argmax())
        return first + 1 if found[first] else 0

    def extra_copies(self, period: int) -> int:
        """How many copies of the last `period` ids stand directly before them."""
        return int(self.lengths[-period]) // period


def repeated_end(units: Sequence[object]) -> int:
    """The smallest m that divides `len(units)` and whose last m units equal the m before, or 0.

    The structural detector of the released RPG code. That m must divide the number of units is an
    accident of that code with a large effect: whether a repeat is seen depends on its distance
    from the beginning.
    """
    n = len(units)
    for m in range(1, n // 2 + 1):
        if n % m == 0 and units[-1] == units[-1 - m] and units[-m:] == units[-2 * m : n - m]:
            return m
    return 0
