"""How often the core is applied: what a caller may ask for, and what training draws."""

from __future__ import annotations

import math
import operator

import torch
from torch import Tensor

from ..errors import UsageError
from .interface import MAX_RECURRENCES

NumSteps = int | Tensor | tuple[int, int]


def split_recurrences(num_steps: NumSteps, backprop_depth: int) -> tuple[int, int]:
    """(recurrences without gradient, recurrences with) from what a caller gave.

    - `num_steps`: a total, whose last `backprop_depth` carry gradient, or the pair itself.

    Raises `UsageError` unless the total is between 1 and `MAX_RECURRENCES`.
    """
    try:
        if isinstance(num_steps, tuple | list) and len(num_steps) == 2:
            without, with_gradient = (operator.index(n) for n in num_steps)
        else:
            total = operator.index(num_steps)
            with_gradient = min(total, backprop_depth)
            without = total - with_gradient
    except TypeError:
        raise UsageError(
            f"num_steps={num_steps!r} must be a whole number of recurrences, or a pair: how many "
            "without gradient, how many with"
        ) from None
    total = without + with_gradient
    if not 1 <= total <= MAX_RECURRENCES or without < 0 or with_gradient < 0:
        raise UsageError(
            f"num_steps={num_steps!r} is out of range: 1 to {MAX_RECURRENCES} recurrences"
        )
    return without, with_gradient


def draw_recurrences(
    mean: int, backprop_depth: int, *, generator: torch.Generator | None = None
) -> tuple[int, int]:
    """Training's random number of recurrences: (without gradient, with gradient).

    p = Poisson(tau) + 1 with tau ~ LogNormal(ln(mean) - 1/8, 1/2), whose mean is `mean`; the last
    `backprop_depth` of the p carry gradient (arXiv 2502.05171, section 3.3, eq. for tau).
    - `generator`: seed it alike on all processes, so that they draw alike; None: torch's own.
    """
    spread = 0.5
    normal = torch.randn((), generator=generator, dtype=torch.float64)
    tau = torch.exp(math.log(mean) - spread**2 / 2 + spread * normal)
    total = min(int(torch.poisson(tau, generator=generator)) + 1, MAX_RECURRENCES)
    with_gradient = min(backprop_depth, total)
    return total - with_gradient, with_gradient
