"""Multi-query associative recall (MQAR) in token ids, with the parameters of `zoology`.

Source: Arora et al. 2023, "Zoology" (arXiv 2312.04927), section 3 and appendix E.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from linearize.errors import UsageError

from .seeds import at_least, generator

IGNORED = -100
# The sets of the paper's figure 2: (tokens, pairs), examples of each.
TRAIN = {(64, 4): 100_000, (128, 8): 20_000, **{(256, n): 20_000 for n in (16, 32, 64)}}
TEST = dict.fromkeys(
    [(64, 4), (64, 8), (64, 16), (128, 32), (256, 64), (512, 128), (1024, 256)], 1000
)


@dataclass(frozen=True)
class Examples:
    """`inputs` [N, T] int64, and `labels` [N, T]: what to predict there, -100 = nothing."""

    inputs: NDArray[np.int64]
    labels: NDArray[np.int64]


def mqar(
    items: int,
    *,
    seed: int = 0,
    length: int = 64,
    pairs: int = 4,
    vocab_size: int = 8192,
    power_a: float = 0.01,
    num_passes: int = 1,
    random_non_queries: bool = True,
) -> Examples:
    """Key-value pairs, then every key once more, with its value as the label.

    Args:
        items: examples, N.
        length: tokens of an example, T; even.
        pairs: keys, distinct, from the lower half of the vocabulary (from 1), and values, distinct,
            from the upper half.
        power_a: keys are asked for at distances d behind the pairs (counted in pairs of tokens,
            from 1) that are drawn without replacement with p ~ d^(power_a - 1).
        num_passes: how often the block of pairs is read before the queries (JRT).
        random_non_queries: the rest is tokens of the whole vocabulary; False = zeros.

    Raises `UsageError` where pairs and queries do not fit into the length, or the pairs into the
    vocabulary.
    """
    at_least(1, length=length, pairs=pairs, num_passes=num_passes)
    at_least(0, items=items)
    block = 2 * pairs * num_passes
    if length % 2:
        raise UsageError(f"length={length} must be even: it is filled with pairs of tokens")
    places = (length - block) // 2
    if places < pairs:
        raise UsageError(
            f"length={length} has no room for {pairs} pairs read {num_passes} times and as many "
            f"queries; at least {block + 2 * pairs} tokens are needed"
        )
    half = vocab_size // 2
    if half - 1 < pairs:
        raise UsageError(
            f"vocab_size={vocab_size} has {half - 1} keys for {pairs} pairs; {2 * pairs + 2} or "
            "more are needed"
        )
    chance = np.arange(1, places + 1, dtype=np.float64) ** (power_a - 1)
    chance /= chance.sum()
    inputs = np.zeros((items, length), np.int64)
    labels = np.full((items, length), IGNORED, np.int64)
    for i in range(items):
        rng = generator(seed, i)
        keys = 1 + rng.permutation(half - 1)[:pairs]
        values = half + rng.permutation(vocab_size - half)[:pairs]
        inputs[i, :block] = np.tile(np.stack([keys, values], 1).ravel(), num_passes)
        at = block + 2 * rng.choice(places, pairs, replace=False, p=chance)
        inputs[i, at], labels[i, at] = keys, values
        if random_non_queries:
            rest = np.ones(length, bool)
            rest[:block], rest[at] = False, False
            inputs[i, rest] = rng.integers(0, vocab_size, rest.sum())
    return Examples(inputs, labels)
