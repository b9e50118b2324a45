"""Teacher and student continue the same held-out text, side by side."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import linearize
from linearize import device, pretrained
from linearize.decoding import generate
from linearize.errors import OutputError
from linearize.recipe import Recipe
from linearize.training import data

PROMPT_TOKENS = 96  # more than the default window of 64, so that the student needs its state


def write(run_dir: Path, recipe: Recipe) -> Path | None:
    """Write `samples.json` into the output directory of a conversion; returns its path.

    A list of `{"prompt", "teacher", "student"}`: greedy continuations of the first
    `PROMPT_TOKENS` tokens (less of short documents) of `recipe.output.samples` held-out documents,
    `recipe.output.sample_tokens` tokens each, fewer where the base's context ends. None where no
    samples are wanted.

    Raises as loading the two models does, and `OutputError` if the file cannot be written.
    """
    if not recipe.output.samples:
        return None
    trust = recipe.trust_remote_code
    base = pretrained.locate(recipe.base, revision=recipe.revision, trust_remote_code=trust)
    tokenizer = pretrained.tokenizer(base, trust)
    prompts = list(islice(_prompts(recipe, tokenizer), recipe.output.samples))
    where = device.pick(recipe.training.device)
    config = pretrained.read_config(base, trust)
    stored = pretrained.stored_dtype(base, config)
    dtype = device.dtype(recipe.training.dtype, stored, where)
    room = config.max_position_embeddings - max(map(len, prompts))
    found: dict[str, list[str]] = {
        "prompt": [tokenizer.decode(p, skip_special_tokens=True) for p in prompts]
    }
    # One after the other: two models need not fit in memory together.
    for role in ("teacher", "student"):
        if role == "teacher":
            model = pretrained.load(base, dtype=dtype, device=where, trust_remote_code=trust)
        else:
            model = linearize.load(run_dir, dtype=dtype, device=where)
        tokens = min(recipe.output.sample_tokens, max(1, room))
        made = generate(model, tokenizer, prompts, max_new_tokens=tokens)
        found[role] = [generation.text for generation in made]
        del model
    rows = [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]
    path = run_dir / "samples.json"
    text = json.dumps(rows, ensure_ascii=False, indent=1)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the samples {path} cannot be written: {error.strerror}") from error
    return path


def _prompts(recipe: Recipe, tokenizer: Any) -> Iterator[list[int]]:
    """Token ids of the start of each held-out document; of any document where none is held out."""
    texts = data.held_out(recipe.data)
    first = next(texts, None)
    if first is None:
        first = next(data.documents(recipe.data))
    for text in chain([first], texts):
        ids = tokenizer(text[: 16 * PROMPT_TOKENS]).input_ids  # no token is longer, as a rule
        yield ids[: min(PROMPT_TOKENS, (len(ids) + 1) // 2)]
