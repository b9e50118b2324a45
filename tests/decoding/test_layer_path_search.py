"""The tree search: moves of the paper, each path once, and what it finds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from linearize.decoding.layer_path_search import Search, front, moves, search
from linearize.errors import UsageError


def test_moves_skip_or_repeat_blocks_in_place():
    found = set(moves((0, 1, 2), 5))
    assert {(1, 2), (0, 2), (0, 1), (2,), (0,)} <= found  # skip 1 and 2
    assert {(0, 0, 1, 2), (0, 1, 1, 1, 2), (0, 1, 0, 1, 2), (0, 1, 2, 1, 2)} <= found
    assert () not in found
    assert (0, 1, 2) not in found
    assert max(map(len, found)) == 5


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6).map(tuple))
def test_a_move_keeps_to_the_limit_and_comes_once(path):
    found = list(moves(path, 8))
    assert len(found) == len(set(found))
    assert path not in found
    assert all(1 <= len(p) <= 8 and set(p) <= set(path) for p in found)


def test_the_plain_model_comes_first_and_no_path_twice():
    asked = []
    found = search(4, lambda path: asked.append(path) or 0.5, Search(simulations=150))
    assert asked[0] == (0, 1, 2, 3)
    assert len(asked) == len(set(asked)) == len(found) == 150
    assert max(map(len, asked)) <= 6


def test_the_same_seed_is_the_same_search():
    def reward(path):
        return (7 * sum(path) + len(path)) % 10 / 10

    runs = [list(search(6, reward, Search(simulations=80, seed=s))) for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_it_ends_when_every_path_is_used_up():
    found = search(2, lambda path: 1.0, Search(simulations=10_000, longest=2))
    assert set(found) == {(0, 1), (0,), (1,), (0, 0), (1, 1)}


@pytest.mark.parametrize("exploration", [0.1, 0.3])
def test_it_finds_a_path_several_moves_away_sooner_than_chance(exploration):
    """Reward: how much of a chain four moves from the root is there already."""
    wanted = (0, 1, 2, 2, 4, 5, 6, 6, 6, 9)

    def reward(path):
        same = sum(a == b for a, b in zip(path, wanted, strict=False))
        return same / max(len(path), len(wanted))

    guided = search(10, reward, Search(simulations=600, exploration=exploration))
    blind = search(10, lambda path: 0.5, Search(simulations=600, exploration=exploration))
    assert max(guided.values()) > max(reward(path) for path in blind) + 0.05


def test_length_weight_turns_the_search_to_short_paths():
    def mean(weight):
        found = search(12, lambda path: 0.5, Search(simulations=150, length_weight=weight))
        return sum(map(len, found)) / len(found)

    assert mean(1.0) < mean(0.0)


def test_the_front_holds_what_nothing_beats():
    rewards = {
        (0, 1, 2): 0.5,
        (0, 1): 0.6,
        (0, 2): 0.4,
        (1,): 0.1,
        (0, 0, 1, 2): 0.6,
        (0,) * 5: 0.7,
    }
    assert front(rewards) == [(1,), (0, 1), (0,) * 5]


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"simulations": 0}, "simulations=0"),
        ({"exploration": -1.0}, "exploration=-1.0"),
        ({"length_weight": float("nan")}, "length_weight=nan"),
        ({"longest": 3}, "longest=3 is below the model's own 4"),
    ],
)
def test_settings_out_of_range_are_named(values, told):
    with pytest.raises(UsageError, match=told):
        search(4, lambda path: 1.0, Search(**values))
