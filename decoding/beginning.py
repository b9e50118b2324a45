"""A beginning that many prompts share, read once: `begin`, then `generate(..., beginning=...)`.

What is kept is the model's cache behind the beginning: for a converted layer a state and a window,
whose size does not depend on how long the beginning was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from linearize.errors import InputError, UsageError
from linearize.liger.state import snapshot
from linearize.recurrent_depth.interface import is_looped

from .encode import encode

# Tokens at the end of the beginning that are read again with each prompt: what follows a text may
# change how its last characters are cut into tokens, and a state cannot be rolled back.
OPEN = 8


@dataclass(frozen=True)
class Beginning:
    """What `begin` returns.

    - `ids`: tokens that the cache holds; prompts have to begin with them.
    - `cache`: of one row; it is copied, never changed.
    """

    ids: list[int]
    cache: Cache

    def check(self, prompt: Sequence[int], which: int) -> None:
        """Raises `InputError` unless prompt number `which` begins with `ids` and goes on."""
        n = len(self.ids)
        if list(prompt[:n]) != self.ids:
            at = next(
                (i for i, (a, b) in enumerate(zip(prompt, self.ids, strict=False)) if a != b),
                len(prompt),
            )
            raise InputError(
                f"prompt {which} leaves the beginning at token {at} of {n}; give prompts whole, "
                "beginning included, or leave out beginning="
            )
        if len(prompt) == n:
            raise InputError(
                f"prompt {which} is the beginning's {n} tokens and nothing else; let it go on, or "
                "leave out beginning="
            )

    def even(self, model: Any, remedies: bool) -> bool:
        """Whether rows of a batch must be equally long: their padding would stand in the middle.

        Remedies look for it at the left only, and in a base with attention windows, unlike in a
        converted layer, it takes places in them.
        """
        config = model.config.get_text_config()
        converted = getattr(config, "linearize", None) is not None
        return remedies or (not converted and bool(getattr(config, "sliding_window", None)))

    def rows(self, count: int) -> Cache:
        """A cache of `count` equal rows, to go on from."""
        return snapshot(self.cache, torch.zeros(count, dtype=torch.long))


def begin(model: Any, tokenizer: Any, text: str | Sequence[int]) -> Beginning:
    """Read `text`, or its token ids, once for all prompts that begin with it.

    Its last `OPEN` tokens stay with the prompts. Raises `InputError` for a text that is shorter
    than that or does not fit the model, `UsageError` for a model whose reading of a beginning
    depends on what follows (`prefix="jrt"`) or that keeps caches of its own (looped models).
    """
    if is_looped(model):
        raise UsageError("a looped model's samplers keep caches of their own; give prompts whole")
    converted = getattr(model.config, "linearize", None)
    if converted and converted["spec"].get("prefix", "none") != "none":
        raise UsageError(
            "this model reads the prompt as a whole (liger.prefix=jrt), so that no part of it can "
            "be read before the rest is known; give prompts whole"
        )
    ids = encode(model, tokenizer, text, max_new_tokens=1)[:-OPEN]
    if not ids:
        raise InputError(f"the beginning has at most {OPEN} tokens: reading it once saves nothing")
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            cache = DynamicCache(config=model.config)
            row: Tensor = torch.tensor([ids], device=model.device)
            model(input_ids=row, past_key_values=cache, use_cache=True, logits_to_keep=1)
    finally:
        model.train(training)
    return Beginning(ids, cache)
