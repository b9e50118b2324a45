"""Decoding with a converted model beside its base: speed and cache over context lengths.

The converted model is the base with `linearize.apply` and no training: speed and memory do not
depend on what the weights have learned. One sequence; both models decode in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import Cache

from linearize.figures import bytes_text
from linearize.liger.state import cache_bytes

from . import counting, shapes
from .drawing import Panel
from .prefill import random_tokens, reader
from .registry import count
from .timing import compare, wait

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
STEPS = 16  # tokens decoded per timed call
SHORT = 256  # tokens; windows are full behind them
LONG = 4096  # tokens: a longer prompt is read once, a shorter one until its time is sure
COLUMNS = ("context", "model", "tokens/s", "of the base's", "prompt ms", "cache", "of read")
COLUMNS += ("of matrix rate",)
PANELS = (
    Panel("time per decoded token", "context", "seconds", "seconds"),
    Panel("cache", "context", "cache_bytes", "bytes"),
)


def options(parser: argparse.ArgumentParser) -> None:
    """Adds them."""
    shapes.options(parser, "embedded")
    parser.add_argument("--contexts", type=count, nargs="+", default=CONTEXTS, metavar="TOKENS")
    parser.add_argument("--seconds", type=float, default=1.0, help="per case, at least [1]")
    parser.add_argument("--converted", action="store_true", help="alone, without its base")
    parser.add_argument(
        "--fill",
        action="store_true",
        help="random numbers as the base's cache: nothing long is read",
    )
    parser.add_argument("--compile", action="store_true", help="its compiled step, too")


def start(asked: argparse.Namespace, device: torch.device) -> tuple[str, Iterator[dict[str, Any]]]:
    """What is measured, in words, and its records."""
    model, _, name = shapes.chosen(asked, device)
    how = {"alone": asked.converted, "compiled": asked.compile, "filled": asked.fill}
    how["seconds"] = asked.seconds
    return f"decoding with {name}", run(model, contexts=asked.contexts, **how)


def run(
    base: Any,
    *,
    contexts: Sequence[int] = CONTEXTS,
    alone: bool = False,
    compiled: bool = False,
    filled: bool = False,
    seconds: float = 1.0,
) -> Iterator[dict[str, Any]]:
    """One record per context length.

    `context` tokens; for `base` and `converted` each: `prefill_seconds`, `seconds` and `operations`
    per token, `cache_bytes` right after prefill, and `bytes` (weights and cache, read once).

    - `alone`: without the base. `compiled`: with a third way, `compiled`, the converted model by
      compiled steps, `linearize.liger.step`.
    - `filled`: caches as they are behind a long prompt, without reading it: time per token does not
      depend on what they hold. The base's has random numbers, the converted model reads `SHORT`
      tokens, behind which its cache grows no more. Without `prefill_seconds`.
    """
    models = {} if alone else {"base": base}
    models["converted"] = shapes.converted(base)
    with contextlib.ExitStack() as stack:
        if compiled:
            models["compiled"] = shapes.converted(base)
            stack.enter_context(models["compiled"].compiled_steps("always"))
        for context in contexts:
            yield _record(models, context, filled, seconds)


def _record(models: dict[str, Any], context: int, filled: bool, seconds: float) -> dict[str, Any]:
    tokens = random_tokens(models["converted"], 1, min(context, SHORT) if filled else context)
    with torch.inference_mode():
        prefill = {name: reader(model, tokens) for name, model in models.items()}
        caches, prefill_seconds = {}, {}
        for name, way in prefill.items():
            start = time.perf_counter()
            caches[name] = way()
            wait()
            prefill_seconds[name] = time.perf_counter() - start
        if filled and "base" in caches:
            _fill(caches["base"], context - tokens.shape[1])
        if context <= LONG and not filled:
            prefill_seconds = compare(prefill, seconds=seconds / 2)
        sizes = {name: cache_bytes(cache) for name, cache in caches.items()}
        taken, counted = _decode(models, caches, tokens[:, -1:], seconds)
    return {
        "context": context,
        **({} if filled else {"prefill_seconds": prefill_seconds}),
        "cache_bytes": sizes,
        "bytes": {n: shapes.weight_bytes(m) + sizes[n] for n, m in models.items()},
        "operations": {name: value // STEPS for name, value in counted.items()},
        "seconds": {name: value / STEPS for name, value in taken.items()},
    }


def _fill(cache: Cache, tokens: int) -> None:
    """Append so many random keys and values to every layer."""
    for layer, entry in enumerate(cache.layers):
        size = (*entry.keys.shape[:2], tokens, entry.keys.shape[3])
        more = (torch.randn(size, device=x.device).to(x.dtype) for x in (entry.keys, entry.values))
        cache.update(*more, layer)


def _decode(
    models: dict[str, Any],
    caches: dict[str, Cache],
    token: torch.Tensor,
    seconds: float,
) -> tuple[dict[str, float], dict[str, int]]:
    fresh: dict[str, Cache] = {}

    def begin(name: str) -> None:  # every timed call begins at the same context
        fresh[name] = copy.deepcopy(caches[name])

    def steps(name: str) -> None:
        for _ in range(STEPS):
            models[name](input_ids=token, past_key_values=fresh[name], use_cache=True)

    ways = {name: functools.partial(steps, name) for name in models}
    taken, counted = compare(ways, seconds=seconds, before=begin), {}
    for name, way in ways.items():
        begin(name)
        counted[name] = counting.operations(way)
    if "compiled" in counted:  # what a graph computes cannot be watched
        counted["compiled"] = counted["converted"]
    return taken, counted


def rows(record: dict[str, Any]) -> Iterator[list[str]]:
    """Lines of the table."""
    base = next(iter(record["seconds"].values()))
    for name, seconds in record["seconds"].items():
        yield [
            f"{record['context']:,}",
            name,
            f"{1 / seconds:.1f}",
            f"{base / seconds:.2f}",
            f"{1e3 * record['prefill_seconds'][name]:.1f}" if "prefill_seconds" in record else "-",
            bytes_text(record["cache_bytes"][name]),
            f"{record['of_read'][name]:.1%}",
            f"{record['of_matrix'][name]:.1%}",
        ]
