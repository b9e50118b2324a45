"""Sets of tokens, one for each place of a batch, as masks over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor


def mask_of(tokens: Tensor, counted: Tensor, vocabulary: int) -> Tensor:
    """`[N, vocabulary]` bool: which tokens stand in a row of `tokens` where `counted` is True.

    - `tokens`: `[N, T]` int64.
    - `counted`: `[N, T]` bool.
    """
    # What does not count goes to a column beyond the vocabulary.
    columns = tokens.masked_fill(~counted, vocabulary)
    found = torch.zeros(len(tokens), vocabulary + 1, dtype=torch.bool, device=tokens.device)
    return found.scatter_(1, columns, True)[:, :vocabulary]
