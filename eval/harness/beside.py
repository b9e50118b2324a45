"""Several continuations of one beginning beside each other in a row: its cache is held once.

A mask keeps them apart: each sees the beginning and itself, at the positions it has alone. This
is for softmax attention over all keys; a recurrent state belongs to one continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

TOKENS = 256  # of all continuations in a row; their keys are computed with, and hidden, in pairs


def packs(lengths: Sequence[int], most: int = TOKENS) -> list[list[int]]:
    """Indices of continuations in rows of at most `most` tokens, or of one continuation."""
    found: list[list[int]] = []
    held = most + 1
    for i, length in enumerate(lengths):
        if held + length > most:
            found.append([])
            held = 0
        found[-1].append(i)
        held += length
    return found


def masked(real: Tensor, parts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """What the tokens of each row see, and where they stand.

    - `real`: [N, past] bool, which columns of the cache hold tokens of the row's beginning.
    - `parts`: lengths of each row's continuations, which stand one behind the other.

    Returns the mask [N, 1, T, past + T] bool and positions [N, T], T the longest row's tokens.
    """
    columns = max(map(sum, parts))
    own = torch.full((len(parts), columns), -1)
    at = torch.zeros(len(parts), columns, dtype=torch.long)
    for row, lengths in enumerate(parts):
        start = 0
        for number, length in enumerate(lengths):
            own[row, start : start + length] = number
            at[row, start : start + length] = torch.arange(length)
            start += length
    new = (own[:, :, None] == own[:, None, :]).tril()  # padding sees padding: no row is empty
    past = real[:, None, :].expand(-1, columns, -1)
    return torch.cat([past, new], 2)[:, None], at + real.sum(1, keepdim=True)


def understands(model: Any) -> bool:
    """Whether a model's cached pass with such a mask gives what it gives for each alone.

    Asked of the model itself: what it makes of a mask of four dimensions depends on its attention.
    """
    size = model.config.get_text_config().vocab_size
    beginning, one, other = ([(7 * i + n) % size for i in range(3)] for n in (1, 2, 5))
    mask, positions = masked(torch.ones(1, 3, dtype=torch.bool), [[3, 3]])

    def last(ids: list[int], **given: Any) -> Any:
        given = {name: x.to(model.device) if name != "past_key_values" else x
                 for name, x in given.items()}  # fmt: skip
        return model(input_ids=torch.tensor([ids], device=model.device), use_cache=True, **given)

    def beside(mask: Tensor) -> Tensor:
        cache = last(beginning).past_key_values
        seen = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
        return last([*one, *other], **seen).logits[0, -3:].float()

    with torch.inference_mode():
        alone = last([*beginning, *other]).logits[0, -3:].float()
        together = beside(torch.ones(1, 9, dtype=torch.long))  # at the same positions
        try:
            apart = beside(mask)
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # it knows no such mask
    # In half precision all are rounded; what does not obey the mask is as far off as `together`.
    return bool((apart - alone).norm() <= 0.25 * (together - alone).norm())
