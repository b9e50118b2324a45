"""The rows of the registry, as tests go through them: options, and how to switch each one off."""

import pytest

from linearize.decoding.remedies import REMEDIES
from linearize.errors import InputError

# A new row needs an entry in both: options that make it act on the golden model, and no effect.
ACTIVE = {
    "rpg": {"language": "python"},
    "rpg-released": {},
    "ditto-cap": {"unit": "line"},
    "dry": {},
    "repetition-penalty": {},
    "no-repeat-ngram": {},
}
NEUTRAL = {
    "rpg": {"strength": 0.0},
    "rpg-released": {"decay": 1.0, "eos_divisor": 1.0},
    "ditto-cap": {"strength": float("inf")},
    "dry": {"multiplier": 0.0},
    "repetition-penalty": {"penalty": 1.0},
    "no-repeat-ngram": {"size": 0},
}
every_remedy = pytest.mark.parametrize("name", sorted(REMEDIES))


def build(name, tokenizer, **options):
    """The remedy called `name`; skips where a package it needs is not installed."""
    try:
        return REMEDIES[name](tokenizer, **(options or ACTIVE[name]))
    except InputError as error:
        pytest.skip(str(error))
