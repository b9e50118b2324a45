"""Decoding with a converted model against its teacher: speed and cache over context lengths.

The converted model is the teacher with `linearize.apply` and no training: speed and memory do not
depend on what the weights have learned. One sequence; both models decode in turns.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from transformers import DynamicCache

import linearize
from linearize.liger.state import cache_bytes

from .timing import compare

CONTEXTS = (128, 256, 512, 1024, 2048, 4096)
STEPS = 16  # tokens decoded per timed call


def run(
    teacher: Any, *, contexts: Sequence[int] = CONTEXTS, seconds: float = 1.0
) -> Iterator[dict[str, Any]]:
    """One record per context length.

    `context` tokens, `prefill_seconds`, `seconds` per token and `cache_bytes`, each with one value
    for `teacher` and one for `converted`. Caches are measured right after prefill.
    """
    converted = linearize.apply(copy.deepcopy(teacher), linearize.LigerSpec(mix="fixed"))
    models = {"teacher": teacher, "converted": converted}
    vocabulary = teacher.config.vocab_size
    for context in contexts:
        tokens = torch.randint(
            vocabulary, (1, context), generator=torch.Generator().manual_seed(context)
        ).to(teacher.device)
        with torch.inference_mode():
            prefill = {name: _prefiller(model, tokens) for name, model in models.items()}
            prefill_seconds = compare(prefill, seconds=seconds / 2)
            caches = {name: way() for name, way in prefill.items()}
            sizes = {name: cache_bytes(cache) for name, cache in caches.items()}
            taken = _decode(models, caches, tokens[:, -1:], seconds)
        yield {
            "context": context,
            "prefill_seconds": prefill_seconds,
            "seconds": {name: value / STEPS for name, value in taken.items()},
            "cache_bytes": sizes,
        }


def _prefiller(model: Any, tokens: torch.Tensor) -> Callable[[], DynamicCache]:
    def prefill() -> DynamicCache:
        cache = DynamicCache(config=model.config)
        model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return cache

    return prefill


def _decode(
    models: dict[str, Any],
    caches: dict[str, DynamicCache],
    token: torch.Tensor,
    seconds: float,
) -> dict[str, float]:
    fresh: dict[str, DynamicCache] = {}

    def start(name: str) -> None:  # every timed call begins at the same context
        fresh[name] = copy.deepcopy(caches[name])

    def steps(name: str) -> None:
        for _ in range(STEPS):
            models[name](input_ids=token, past_key_values=fresh[name], use_cache=True)

    ways = {name: functools.partial(steps, name) for name in models}
    return compare(ways, seconds=seconds, before=start)
