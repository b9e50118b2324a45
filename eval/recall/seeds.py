"""Random generators of items."""

from __future__ import annotations

import numpy as np

from linearize.errors import UsageError


def generator(seed: int, *numbers: int) -> np.random.Generator:
    """The generator of one item: depends on the seed and the item's numbers, all at least 0."""
    return np.random.default_rng((seed, *numbers))


def at_least(least: int, **values: int) -> None:
    """Raises `UsageError` naming the first value that is not an integer of at least `least`."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise UsageError(f"{name}={value!r} must be an integer of at least {least}")
