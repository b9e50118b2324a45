"""What the machine can do at most, measured in the same run as what is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from .timing import once

LIMITS = ("copy", "read", "matrix")
COPIED, WIDTH = 2**28, {"cpu": 1024}  # bytes; side of the square matrices, 8,192 elsewhere


def measure(
    device: torch.device, dtype: torch.dtype, *, copied: int = COPIED, seconds: float = 0.5
) -> dict[str, Any]:
    """`copy`: bytes per second read and written by a copy of `copied` bytes;
    `read`: bytes per second of a matrix of as many, which a product with a vector reads once;
    `matrix`: operations per second of a product of large square matrices in `dtype`.

    The best of what `seconds` allow for each: other programs only take away.
    """
    source = torch.ones(copied, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    side = WIDTH.get(device.type, 8192)
    a = torch.randn(side, side, device=device).to(dtype)
    wide = torch.ones(copied // (8192 * dtype.itemsize) or 1, 8192, device=device, dtype=dtype)
    vector = wide[0].clone()
    return {
        "copy": 2 * copied / _best(lambda: target.copy_(source), seconds),
        "read": wide.nbytes / _best(lambda: wide @ vector, seconds),
        "matrix": 2 * side**3 / _best(lambda: a @ a, seconds),
        "dtype": str(dtype).removeprefix("torch."),
    }


def better(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The higher of both, limit by limit."""
    return second | {name: max(first[name], second[name]) for name in LIMITS}


def _best(way: Callable[[], Any], seconds: float) -> float:
    once(way)
    started, taken = time.perf_counter(), [once(way)]
    while time.perf_counter() - started < seconds:
        taken.append(once(way))
    return min(taken)


def shares(record: dict[str, Any], limits: dict[str, Any]) -> dict[str, Any]:
    """The record with `of_copy`, `of_read` and `of_matrix`: what its `bytes`, bytes again and
    `operations` per second are of the limits, way by way, where it has them."""
    found = {}
    for counted, limit in (("bytes", "copy"), ("bytes", "read"), ("operations", "matrix")):
        if counted in record:
            found[f"of_{limit}"] = {
                way: count / record["seconds"][way] / limits[limit]
                for way, count in record[counted].items()
            }
    return record | found
