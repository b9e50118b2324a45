"""Exact match of short answers, one forward pass per batch.

A model that decodes greedily writes an answer exactly if each of its tokens is the most probable
one after all before it, which one pass over prompt and answer tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from linearize.errors import UsageError

Question = tuple[str, str]  # what the model reads, and what should follow


@torch.no_grad()
def exact_match(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    *,
    prefix: bool = False,
    tokens_at_once: int = 8192,
) -> torch.Tensor:
    """`[N]` bool: whether greedy decoding writes the answer.

    Args:
        model: a causal LM of transformers, in eval mode. Rows are padded on the right, where
            nothing before it sees the padding.
        questions: prompt and answer of each; no prompt ends in white space, and a blank is put
            before the answer, as the tokenizer would meet it in running text.
        prefix: encode each prompt, but not its answer, as a whole; for models with such an encoder.
        tokens_at_once: of a batch, padding included; a longer question goes alone.

    Raises `UsageError` for an empty answer or a prompt that ends in white space.
    """
    rows = [_encoded(tokenizer, *question) for question in questions]
    device = next(model.parameters()).device
    found = torch.zeros(len(rows), dtype=torch.bool)
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]))
    while order:
        longest = len(rows[order[0]][0])
        size = max(1, tokens_at_once // longest)
        batch, order = order[:size], order[size:]
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        for place, i in enumerate(batch):
            ids[place, : len(rows[i][0])] = torch.tensor(rows[i][0])
        more = {}
        if prefix:
            more["prefix_lengths"] = torch.tensor([len(rows[i][0]) - rows[i][1] for i in batch])
        logits = model(input_ids=ids.to(device), use_cache=False, **more).logits
        chosen = logits.argmax(-1).cpu()
        for place, i in enumerate(batch):
            row, answer = rows[i]
            given = chosen[place, len(row) - answer - 1 : len(row) - 1]
            found[i] = bool((given == torch.tensor(row[-answer:])).all())
    return found


def _encoded(tokenizer: Any, prompt: str, answer: str) -> tuple[list[int], int]:
    """Ids of both together, and how many of them are the answer's."""
    if not answer.strip() or prompt != prompt.rstrip():
        raise UsageError(
            f"cannot score {answer!r} after {prompt[-20:]!r}: the answer must not be empty, and "
            "the prompt must not end in white space"
        )
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    first, second = (
        tokenizer(text, add_special_tokens=False).input_ids for text in (prompt, f" {answer}")
    )
    return bos + first + second, len(second)
