"""How much a model repeats itself when it continues held-out text greedily."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice
from typing import Any

from linearize.decoding import generate
from linearize.errors import InputError
from linearize.eval.metrics.repetition import repetition
from linearize.recipe import FinetuneRecipe
from linearize.training import data

_KEPT = ("rep-2", "rep-3", "rep-4", "rep-w", "rep-sen")


def measure(recipe: FinetuneRecipe) -> Callable[[Any, Any], dict[str, float]] | None:
    """What `linearize.finetune` takes as `measure`; None where the recipe wants nothing measured.

    The function gives, for greedy continuations of the first tokens of held-out documents:
    `rep-2`, `rep-3`, `rep-4`, `rep-w` over token ids and `rep-sen`, as defined in
    `linearize.eval.metrics.repetition`; `ended`, the share that stopped by itself; `tokens`, their
    mean number. It raises `InputError` where no held-out document is long enough.
    """
    settings = recipe.measure
    if not settings.prompts:
        return None

    def run(model: Any, tokenizer: Any) -> dict[str, float]:
        length = settings.prompt_tokens
        texts = data.held_out(recipe.data)
        # No token is longer than 16 characters, as a rule.
        encoded = (tokenizer(text[: 16 * length]).input_ids for text in texts)
        prompts = [ids[:length] for ids in islice(_long(encoded, length), settings.prompts)]
        if not prompts:
            raise InputError(
                f"no held-out document has {length} tokens to continue; lower "
                "measure.prompt_tokens, give --eval-data, or set measure.prompts=0"
            )
        made = generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=settings.new_tokens,
            batch_size=settings.at_once,
        )
        found = repetition([m.text for m in made], tokens=[m.ids for m in made])
        ended = sum(m.finish_reason == "eos" for m in made) / len(made)
        tokens = sum(len(m.ids) for m in made) / len(made)
        return {name: found[name] for name in _KEPT} | {"ended": ended, "tokens": tokens}

    return run


def _long(encoded: Any, length: int) -> Any:
    return (ids for ids in encoded if len(ids) >= length)
