"""How much a model repeats itself when it continues held-out text greedily."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from linearize.decoding import generate
from linearize.errors import InputError
from linearize.eval.metrics.repetition import rep_n, repetition, seq_rep_n
from linearize.recipe import FinetuneRecipe
from linearize.training import data, pseudo_repetition
from linearize.training.evaluate import mean_loss
from linearize.training.packing import Rows, row_at, whole

_KEPT = ("rep-2", "rep-3", "rep-4", "rep-w", "rep-sen")


def measure(recipe: FinetuneRecipe) -> Callable[[Any, Any], dict[str, float]] | None:
    """What `linearize.finetune` takes as `measure`; None where the recipe wants nothing measured.

    The function gives, for greedy continuations of the first tokens of held-out documents,
    `rep-2`, `rep-3`, `rep-4`, `rep-w` over token ids and `rep-sen`, as defined in
    `linearize.eval.metrics.repetition`; `ended`, the share that stopped by itself; `tokens`, their
    mean number; `text rep-4`, what the documents themselves have in that place, for as many tokens;
    `text perplexity`, the model's of the documents read from their beginning that far. Held-out
    rows may be cut out of the middle of documents, which training gets a model used to: this has
    none.
    And for prompts at whose end a sentence (`recipe.repetition.unit`) stands
    `recipe.measure.copies` times already: `loop rep-4` of what follows, and `loop goes on`, the
    share that begins with another whole copy.

    It raises `InputError` where no held-out document is long enough.
    """
    settings = recipe.measure
    if not settings.prompts:
        return None

    def continued(model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]]) -> list[Any]:
        return generate(
            model,
            tokenizer,
            prompts,
            max_new_tokens=settings.new_tokens,
            batch_size=settings.at_once,
        )

    def run(model: Any, tokenizer: Any) -> dict[str, float]:
        starts, rests = zip(*_cut(recipe, tokenizer), strict=True)
        made = continued(model, tokenizer, starts)
        measured = repetition([m.text for m in made], tokens=[m.ids for m in made])
        found = {name: measured[name] for name in _KEPT}
        found["ended"] = sum(m.finish_reason == "eos" for m in made) / len(made)
        found["tokens"] = sum(len(m.ids) for m in made) / len(made)
        found["text rep-4"] = rep_n(rests, 4)
        texts = [start + rest for start, rest in zip(starts, rests, strict=True)]
        found["text perplexity"] = _perplexity(model, texts, settings.at_once)
        if settings.copies:
            loops = _loops(recipe, tokenizer)
            made = continued(model, tokenizer, [before + copied for before, copied in loops])
            units = [copied[: len(copied) // settings.copies] for _, copied in loops]
            again = [m.ids[: len(u)] == u for m, u in zip(made, units, strict=True)]
            found["loop rep-4"] = seq_rep_n([m.ids for m in made], 4)
            found["loop goes on"] = sum(again) / len(again)
        return found

    return run


def _perplexity(model: Any, texts: Sequence[Sequence[int]], batch_size: int) -> float:
    tokens = np.concatenate([np.array(ids, np.int32) for ids in texts])
    starts = np.cumsum([0, *map(len, texts[:-1])], dtype=np.int64)
    longest = max(map(len, texts))
    rows = Rows(*whole(tokens, starts, longest, []), longest)
    return math.exp(mean_loss(model, rows, batch_size=batch_size)[0])


def _cut(recipe: FinetuneRecipe, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """The first tokens of held-out documents that have more, and what comes next in them."""
    length = recipe.measure.prompt_tokens
    end = length + recipe.measure.new_tokens
    # No token is longer than 16 characters, as a rule.
    encoded = (tokenizer(text[: 16 * end + 16]).input_ids for text in data.held_out(recipe.data))
    longer = islice(_longer(encoded, length), recipe.measure.prompts)
    found = [(ids[:length], ids[length:end]) for ids in longer]
    if not found:
        raise InputError(
            f"no held-out document has more than {length} tokens; lower measure.prompt_tokens, "
            "give --eval-data, or set measure.prompts=0"
        )
    return found


def _longer(encoded: Any, length: int) -> Any:
    return (ids for ids in encoded if len(ids) > length)


def _loops(recipe: FinetuneRecipe, tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """What stands before the first copy, and the copies: units of held-out text, in mixed order."""
    single = recipe.repetition.model_copy(update={"units": 1})
    rows = pseudo_repetition.build(
        data.held_out(recipe.data), recipe.data, single, tokenizer, recipe.data.eval_tokens
    )
    count = min(len(rows), recipe.measure.prompts)
    spans = [rows.spans[row_at(i, len(rows), seed=0)] for i in range(count)]
    return [
        (
            [*rows.begin, *rows.tokens[prefix:unit].tolist()],
            rows.tokens[unit:end].tolist() * recipe.measure.copies,
        )
        for prefix, unit, end in spans
    ]
