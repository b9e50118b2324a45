"""From a prompt to token ids that a model can read, or one line that says why it cannot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from linearize.errors import InputError, UsageError

Truncate = Literal["left"]


def encode(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int],
    *,
    max_new_tokens: int,
    truncate: Truncate | None = None,
) -> list[int]:
    """Token ids of a prompt, checked against the model.

    - `prompt`: text, or token ids where the caller has tokenised already.
    - `max_new_tokens`: how many are to follow.
    - `truncate`: "left" drops the oldest tokens (a beginning-of-text token stays) until prompt and
      new tokens fit the model's positions.

    A model with rotary positions may run past its last trained position, where transformers
    prints a reminder; a prompt alone that is longer is refused, and so is everything beyond the
    end of a learned table of positions. Recurrent layers and pure sliding windows have no end.

    Raises `InputError` for a prompt without tokens where the tokenizer has no beginning-of-text
    token, for text that is not Unicode, for ids outside the vocabulary and for too many tokens;
    `UsageError` if `max_new_tokens` leaves no room for a prompt.
    """
    if truncate not in (None, "left"):
        raise UsageError(f"truncate={truncate!r} is not known; the only way is 'left'")
    ids = _ids(tokenizer, prompt)
    size = model.get_input_embeddings().weight.shape[0]
    outside = next((i for i in ids if not 0 <= i < size), None)
    if outside is not None:
        raise InputError(
            f"token {outside} is outside the model's vocabulary of {size} (ids 0 to {size - 1}); "
            "use the tokenizer that belongs to this model"
        )
    limit, ends = positions(model)
    if limit is None:
        return ids
    if truncate == "left" and len(ids) + max_new_tokens > limit:
        return _cut(ids, tokenizer.bos_token_id, limit, max_new_tokens)
    if len(ids) > limit:
        raise InputError(
            f"the prompt has {len(ids)} tokens, and this {model.config.model_type} model has "
            f"{limit} positions; shorten the prompt, or drop its beginning with truncate='left' "
            "(--truncate left)"
        )
    if ends and len(ids) + max_new_tokens > limit:
        raise InputError(
            f"prompt and new tokens together are {len(ids) + max_new_tokens} tokens, and this "
            f"{model.config.model_type} model has {limit} positions; "
            "shorten the prompt or lower max_new_tokens"
        )
    return ids


def positions(model: Any) -> tuple[int | None, bool]:
    """How many positions a model was made for, None if any; whether it ends there."""
    config = model.config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None)
    if not limit:
        return None, False
    words = model.get_input_embeddings()
    tables = (m for m in model.modules() if isinstance(m, torch.nn.Embedding) and m is not words)
    # OPT adds an offset of 2 to its table.
    ends = any(limit <= table.num_embeddings < limit + 8 for table in tables)
    kinds = getattr(config, "layer_types", None)
    if kinds and "full_attention" not in kinds and not ends:
        return None, False
    return limit, ends


def _ids(tokenizer: Any, prompt: str | Sequence[int]) -> list[int]:
    if tokenizer is None:
        raise InputError("there is no tokenizer; load the one that belongs to the model")
    if isinstance(prompt, str):
        try:
            prompt.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"character {error.start} of the prompt is half of a surrogate pair or a byte "
                "that is not UTF-8; repair the text"
            ) from error
        prompt = tokenizer(prompt).input_ids
    ids = [int(i) for i in prompt]
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
    if not ids:
        raise InputError(
            "the prompt is empty: it has no tokens, and this tokenizer has no token to begin "
            "with; give some text"
        )
    return ids


def _cut(ids: list[int], bos: int | None, limit: int, max_new_tokens: int) -> list[int]:
    room = limit - max_new_tokens
    if room < 2:
        raise UsageError(
            f"max_new_tokens={max_new_tokens} leaves no room for a prompt in {limit} positions; "
            "lower it"
        )
    return [bos, *ids[1 - room :]] if ids[0] == bos else ids[-room:]
