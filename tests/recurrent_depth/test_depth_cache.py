"""The cache of a looped model: rows, lengths, growth, sharing, memory."""

from __future__ import annotations

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looped_models import close, small, tokens

from linearize.errors import UsageError
from linearize.recurrent_depth.cache import RecurrentDepthCache
from linearize.recurrent_depth.sharing import Sharing

MODEL = small()
STEPS = 3


def run(ids: torch.Tensor, cache: RecurrentDepthCache | None, steps: int = STEPS) -> torch.Tensor:
    with torch.no_grad():
        return MODEL(ids, past_key_values=cache, num_steps=steps, use_cache=False).logits


@settings(max_examples=25, deadline=None)
@given(
    cuts=st.lists(st.integers(1, 6), min_size=1, max_size=6),
    rows=st.integers(1, 3),
    known=st.booleans(),
)
def test_any_split_of_a_text_gives_the_same(cuts: list[int], rows: int, known: bool) -> None:
    ids = tokens(rows, sum(cuts), seed=len(cuts))
    cache = MODEL.new_cache(max_length=sum(cuts) if known else 1)
    parts = [run(part, cache) for part in ids.split(cuts, 1)]
    close(torch.cat(parts, 1), run(ids, None))
    assert cache.lengths.tolist() == [sum(cuts)] * rows
    assert cache.get_seq_length() == sum(cuts)


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=4), seed=st.integers(0, 10**6))
def test_rows_of_any_length_move_on_their_own(lengths: list[int], seed: int) -> None:
    """A pool: every pass advances some rows by some tokens; unused places are -1."""
    choose = random.Random(seed)
    ids = tokens(len(lengths), max(lengths))
    expected = run(ids, None)
    cache, done = MODEL.new_cache(max_length=2), [0] * len(lengths)
    while done != lengths:
        take = [choose.randint(0, n - d) for d, n in zip(done, lengths, strict=True)]
        width = max(*take, 1)
        positions = torch.full((len(lengths), width), -1)
        given_ids = torch.zeros_like(positions)
        for row, (d, t) in enumerate(zip(done, take, strict=True)):
            lead = choose.randint(0, width - t)  # unused places on either side
            positions[row, lead : lead + t] = torch.arange(d, d + t)
            given_ids[row, lead : lead + t] = ids[row, d : d + t]
        with torch.no_grad():
            e = MODEL.embed(given_ids, positions, cache)
            z = MODEL.initial_state(e.shape[:2], scale=0)
            for step in range(STEPS):
                z = MODEL.core_step(z, e, positions, cache, step)
            logits = MODEL.decode(z, positions, cache)
        assert logits.isfinite().all()
        for row, (d, t) in enumerate(zip(done, take, strict=True)):
            close(logits[row][positions[row] >= 0], expected[row, d : d + t])
            done[row] += t
    assert cache.lengths.tolist() == lengths


def test_trimming_rows_to_different_lengths() -> None:
    ids = tokens(2, 8)
    cache = MODEL.new_cache()
    expected = run(ids, cache)
    cache.trim(torch.tensor([3, 6]))
    assert cache.lengths.tolist() == [3, 6]
    positions = torch.tensor([[3, 4, 5, 6, 7], [6, 7, -1, -1, -1]])
    with torch.no_grad():
        e = MODEL.embed(ids.gather(1, positions.clamp(min=0)), positions, cache)
        z = MODEL.initial_state(e.shape[:2], scale=0)
        for step in range(STEPS):
            z = MODEL.core_step(z, e, positions, cache, step)
        logits = MODEL.decode(z, positions, cache)
    close(logits[0], expected[0, 3:])
    close(logits[1, :2], expected[1, 6:])


def test_changed_positions_are_noticed() -> None:
    """The placement is remembered by the tensor object; writing into it makes a new one."""
    cache = MODEL.new_cache()
    run(tokens(1, 4), cache)
    positions = torch.tensor([[4]])
    first = cache.place(positions)
    assert cache.place(positions) is first
    positions += 1
    assert cache.place(positions).where.tolist() == [[5]]


@pytest.mark.parametrize(
    ("sharing", "places"),
    [
        (None, [0, 1, 2, 3, 4, 5]),
        (1, [0, 0, 0, 0, 0, 0]),
        (2, [0, 1, 0, 1, 0, 1]),
        (Sharing(budget=2, anchor=1), [0, 1, 2, 1, 2, 1]),
        ("latest-m4-compress-s4", [0, 1, 0, 1, 0, 1]),
    ],
)
def test_where_recurrences_go(sharing, places: list[int]) -> None:
    cache = MODEL.new_cache(sharing=sharing)
    assert [cache.sharing.place(t) for t in range(6)] == places
    run(tokens(2, 5), cache, steps=6)
    P, C = 1, 2
    core = {P + C * p + j for p in places for j in range(C)}
    assert set(cache.slots) == core | {0, -1}


def test_memory_is_counted_and_shared() -> None:
    ids, sizes = tokens(2, 10), {}
    for sharing in (None, 2, 1):
        cache = MODEL.new_cache(sharing=sharing, max_length=16)
        run(ids, cache, steps=8)
        slots = 2 + 2 * (sharing or 8)
        assert cache.bytes_per_token == slots * 2 * 24 * 4
        assert cache.nbytes == 2 * 17 * cache.bytes_per_token
        sizes[sharing] = cache.nbytes
    assert sizes[1] < sizes[2] < sizes[None]


def test_a_budget_as_large_as_the_recurrences_changes_nothing() -> None:
    ids = tokens(1, 9)
    for sharing in (STEPS, Sharing(budget=1, anchor=STEPS)):
        cache = MODEL.new_cache(sharing=sharing)
        parts = [run(part, cache) for part in ids.split(4, 1)]
        close(torch.cat(parts, 1), run(ids, None))
    cache = MODEL.new_cache(sharing=1)
    parts = [run(part, cache) for part in ids.split(4, 1)]
    assert not torch.allclose(torch.cat(parts, 1), run(ids, None), atol=1e-3)


def test_depth_counts_the_recurrences_of_each_token() -> None:
    cache = MODEL.new_cache()
    for part, steps in zip(tokens(1, 6).split(2, 1), (4, 1, 3), strict=True):
        run(part, cache, steps)
    assert cache.depth(0).tolist() == [4, 4, 1, 1, 3, 3]
    cache.trim(4)
    assert cache.depth(0).tolist() == [4, 4, 1, 1]


def test_growth_keeps_what_is_there() -> None:
    cache = MODEL.new_cache(max_length=3)
    ids = tokens(1, 100)
    parts = [run(part, cache) for part in ids.split([2, 1, 90, 7], 1)]
    close(torch.cat(parts, 1), run(ids, None))
    assert cache.capacity == 93 * 2


@pytest.mark.parametrize(
    ("sharing", "told"),
    [
        (0, "budget 0"),
        ("latest", "did you mean 'latest-m4'"),
        ("latest-m4-compress-s3", "not a multiple of the 2 core layers"),
        ("latest-m4-compress-x", "compress-sN"),
    ],
)
def test_bad_sharing(sharing, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        MODEL.new_cache(sharing=sharing)


def test_bad_use() -> None:
    with pytest.raises(UsageError, match="unknown cache lookup"):
        Sharing(lookup="deepest")
    with pytest.raises(UsageError, match="max_length=0"):
        MODEL.new_cache(max_length=0)
    cache = MODEL.new_cache()
    run(tokens(2, 4), cache)
    with pytest.raises(UsageError, match="3 rows and the cache 2"):
        cache.place(torch.tensor([[4], [4], [4]]))
    with pytest.raises(UsageError, match="row 1 continues at position 6, but the cache holds 4"):
        cache.place(torch.tensor([[4], [6]]))
    with pytest.raises(UsageError, match="cannot trim to -1"):
        cache.trim(-1)
    with pytest.raises(UsageError, match="through its placement"):
        cache.update(torch.zeros(1), torch.zeros(1), 0)
