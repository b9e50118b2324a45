"""What a call does, counted instead of timed: operations, and memory at its peak."""

from __future__ import annotations

import json
import os
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from linearize.ops import backend

from .timing import wait


def operations(way: Callable[[], Any]) -> int:
    """Operations of the matrix products in one call, two per multiplication and addition.

    Causal attention counts the pairs that are visible on the CPU, and all of them on CUDA, where
    torch counts. What kernels compute that torch does not know is counted in its plain form.
    """
    custom = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    with FlopCounterMode(display=False, custom_mapping=custom) as counter, backend.use("chunk"):
        way()
    return counter.get_total_flops()


def peak_bytes(way: Callable[[], Any], device: torch.device) -> int:
    """Most bytes of tensors alive at once during one call, beyond those alive before it."""
    if device.type == "cuda":
        wait()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        wait()
        return torch.cuda.max_memory_allocated(device) - before
    # The resident size of a process says little: freed memory stays with it. The allocator's own
    # record does, and the profiler has it.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that tracing is slow, and the like
        with torch.profiler.profile(
            activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
        ) as profile:
            way()
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "trace.json"
            profile.export_chrome_trace(str(file))
            events = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    alive = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        alive += event["args"]["Bytes"]
        peak = max(peak, alive)
    return peak


def _attention(
    q: Any, k: Any, v: Any, dropout: Any = 0.0, causal: bool = False, **more: Any
) -> int:
    rows, heads, queries, width = q
    return 2 * rows * heads * _pairs(queries, k[2], causal) * (width + v[3])


def _attention_backward(
    grad: Any,
    q: Any,
    k: Any,
    v: Any,
    out: Any = None,
    logsumexp: Any = None,
    dropout: Any = 0.0,
    causal: bool = False,
    **more: Any,
) -> int:
    """Scores again, then the gradients of values, weights, queries and keys."""
    rows, heads, queries, width = q
    return 2 * rows * heads * _pairs(queries, k[2], causal) * (3 * width + 2 * v[3])


def _pairs(queries: int, keys: int, causal: bool) -> int:
    return queries * (2 * keys - queries + 1) // 2 if causal else queries * keys
