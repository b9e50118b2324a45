"""Which rows share a pass: as little padding as pays for its passes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

# What a pass costs beyond its tokens, in tokens: on a CPU little, more where a layer has parts
# besides softmax attention; on an accelerator its launches.
PASS_ON_CPU, PASS_OF_PARTS, PASS_ELSEWHERE = 32, 64, 1024


def fixed_cost(device: torch.device, *, plain: bool) -> int:
    """Tokens that take as long as what every pass does besides.

    - `plain`: whether all layers are softmax attention.
    """
    if device.type != "cpu":
        return PASS_ELSEWHERE
    return PASS_ON_CPU if plain else PASS_OF_PARTS


def batches(lengths: Sequence[int], *, most: int, fixed: int) -> list[slice]:
    """Consecutive batches of at most `most` rows that cost least together.

    - `lengths`: tokens of each row, longest first. A batch is padded to its first row's.
    - `fixed`: what a batch costs besides, in tokens.
    """
    count = len(lengths)
    cost, end = [0] * (count + 1), [count] * (count + 1)  # of the rows from each on
    for first in range(count - 1, -1, -1):
        cost[first], end[first] = min(
            (lengths[first] * (stop - first) + fixed + cost[stop], stop)
            for stop in range(first + 1, min(first + most, count) + 1)
        )
    found, first = [], 0
    while first < count:
        found.append(slice(first, end[first]))
        first = end[first]
    return found
