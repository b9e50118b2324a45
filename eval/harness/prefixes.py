"""What requests have in common: a tree of shared beginnings, so that each is encoded once.

The tree is built from the token ids alone. A branch is worth its extra pass through the model only
if it saves enough tokens; shorter common beginnings stay with the requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

LEAST = 16  # tokens that a branch must save each of the requests behind it
LEVELS = 32  # branches above each other; ever shorter pieces are not worth ever more passes


@dataclass(frozen=True)
class Branch:
    """Tokens `start` to `end` of request `of`, which all requests below begin with."""

    start: int
    end: int
    of: int
    below: list[Branch | int]


def shared(keys: Sequence[tuple[int, ...]], least: int = LEAST) -> list[Branch | int]:
    """The tree over `keys`, the part of each request that may be shared.

    Returns branches and the indices of requests that share nothing worth a branch.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    common = [_common(keys[a], keys[b]) for a, b in pairwise(order)]

    def below(first: int, last: int, depth: int, level: int) -> list[Branch | int]:
        """What `order[first:last]` is made of, all of which share `depth` tokens."""
        found: list[Branch | int] = []
        while first < last:
            end = first + 1
            while end < last and common[end - 1] >= depth + least and level < LEVELS:
                end += 1
            if end - first == 1:
                found.append(order[first])
            else:
                deep = min(common[first : end - 1])
                inside = below(first, end, deep, level + 1)
                found.append(Branch(depth, deep, order[first], inside))
            first = end
        return found

    return below(0, len(order), 0, 0)


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Length of the common beginning, by bisection: slices compare at the speed of C."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
