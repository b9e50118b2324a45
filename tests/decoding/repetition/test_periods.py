"""Verbatim repetition of tokens, against a naive definition."""

from hypothesis import given, settings
from hypothesis import strategies as st

from linearize.decoding.repetition.periods import Periods

LONGEST = 6


def naive(tokens, min_copies, min_tokens):
    """(copies, one copy) of the shortest period that stands often enough at the end."""
    for period in range(1, LONGEST + 1):
        match = 0
        while match + period < len(tokens) and tokens[-1 - match] == tokens[-1 - match - period]:
            match += 1
        if match >= max((min_copies - 1) * period, min_tokens - period):
            return match // period + 1, tokens[-period:]
    return None


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.lists(st.integers(0, 2), max_size=40),
    copies=st.integers(2, 4),
    least=st.integers(0, 8),
)
def test_the_definition(tokens, copies, least):
    periods = Periods(LONGEST)
    for token in tokens:
        periods.append(token)
    got = periods.run(min_copies=copies, min_tokens=least)
    assert got == naive(tokens, copies, least)


def test_a_copy_goes_its_own_way():
    periods = Periods(LONGEST)
    for token in [1, 2, 1, 2]:
        periods.append(token)
    copy = periods.fork()
    copy.append(3)
    assert periods.run(min_copies=2, min_tokens=0) == (2, [1, 2])
    assert copy.run(min_copies=2, min_tokens=0) is None


def test_looped_tokens_add_up_and_fade():
    periods = Periods(LONGEST)
    for token in [7] * 10:
        periods.append(token)
    assert periods.looped == 7, "the first three copies are free"
    for token in range(100, 108):
        periods.append(token)
    assert periods.looped == 5
