"""Timing several ways of doing one thing against each other."""

from __future__ import annotations

import importlib.metadata
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from linearize import device as devices


def compare(
    ways: Mapping[str, Callable[[], Any]],
    *,
    seconds: float = 1.0,
    rounds: int = 3,
    before: Callable[[str], None] | None = None,
) -> dict[str, float]:
    """Median seconds per call of each way.

    Every way is called once to warm up; then all of them in turn, round after round, so that a
    machine that slows down slows them all: ratios between the medians mean something, the medians
    alone less. At least `rounds` rounds, then until `seconds` have passed. `before` is called with
    a way's name before each of its calls, and is not timed.
    """
    prepare = before or (lambda name: None)
    for name, way in ways.items():
        prepare(name)
        way()
    taken: dict[str, list[float]] = {name: [] for name in ways}
    started = time.perf_counter()
    done = 0
    while done < rounds or time.perf_counter() - started < seconds:
        for name, way in ways.items():
            prepare(name)
            taken[name].append(once(way))
        done += 1
    return {name: statistics.median(times) for name, times in taken.items()}


def once(way: Callable[[], Any]) -> float:
    """Seconds of one call, until the device has done it."""
    wait()
    start = time.perf_counter()
    way()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Until the device has done what it was given."""
    if torch.accelerator.is_available():  # kernels run on after the call has returned
        torch.accelerator.synchronize()


def machine(device: torch.device) -> dict[str, Any]:
    """What a number was measured on."""
    return {
        **{name: importlib.metadata.version(name) for name in ("linearize", "transformers")},
        "torch": torch.__version__,
        "device": devices.describe(device),
        "threads": torch.get_num_threads(),
    }


def dtype_of(asked: Any, device: torch.device) -> torch.dtype:
    """What a bench computes in if nothing else is said: the limits are measured in the same."""
    named = getattr(asked, "dtype", "auto")
    if named != "auto":
        return getattr(torch, named)
    return torch.float32 if device.type == "cpu" else torch.bfloat16
