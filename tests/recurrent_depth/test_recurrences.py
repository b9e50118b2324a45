"""How often the core is applied."""

from __future__ import annotations

import pytest
import torch

from linearize.errors import UsageError
from linearize.recurrent_depth.recurrences import draw_recurrences, split_recurrences


@pytest.mark.parametrize(
    ("given", "expected"),
    [(5, (3, 2)), (1, (0, 1)), ((7, 0), (7, 0)), ((0, 3), (0, 3)), (torch.tensor(4), (2, 2))],
)
def test_split(given, expected: tuple[int, int]) -> None:
    assert split_recurrences(given, 2) == expected


@pytest.mark.parametrize("given", [0, -1, (0, 0), (-1, 3), (3, -1), 4097])
def test_out_of_range(given) -> None:
    with pytest.raises(UsageError, match="out of range: 1 to 4096"):
        split_recurrences(given, 2)


@pytest.mark.parametrize("given", ["4", 2.5, (1, 2, 3), None])
def test_not_a_number(given) -> None:
    with pytest.raises(UsageError, match="whole number of recurrences"):
        split_recurrences(given, 2)


def test_draws() -> None:
    make = torch.Generator().manual_seed(0)
    drawn = [draw_recurrences(32, 8, generator=make) for _ in range(4000)]
    totals = torch.tensor([sum(d) for d in drawn], dtype=torch.float64)
    # E[p] = mean + 1; Var = E[tau] + Var[tau] = 32 + 32^2 (e^(1/4) - 1)
    deviation = (32 + 32**2 * (torch.e**0.25 - 1)) ** 0.5
    assert abs(totals.mean() - 33) < 4 * deviation / 4000**0.5
    assert abs(totals.std() / deviation - 1) < 0.1
    assert totals.min() >= 1
    assert all(k == min(8, n + k) for n, k in drawn)
    make = torch.Generator().manual_seed(0)
    assert [draw_recurrences(32, 8, generator=make) for _ in range(20)] == drawn[:20]
