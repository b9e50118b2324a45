"""What a model would say if nothing it repeats could be its first choice.

A token that completes an n-gram of its document again is a copy. Of all that could come next, the
copies may have at most `penalty` times the probability of the best token that is none: DITTO's
bound (Xu et al. 2022) with the best other choice in the place of the copy before. Ours.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .ditto import FLOOR
from .token_sets import mask_of


def copies(ids: Tensor, begins: Tensor, where: Tensor, *, n: int, vocabulary: int) -> Tensor:
    """`[N, vocabulary]` bool: the tokens that would complete an n-gram again behind some places.

    Those behind an earlier n - 1 tokens of the document that are the same as the last n - 1 up to
    the place.

    - `ids`: `[B, T]` int64.
    - `begins`: `[B, T]` int64, where in its row each token's document begins.
    - `where`: `[N]` int64, places numbered row by row.
    - `n`: at least 2.
    """
    length = ids.shape[1]
    row, place = where // length, where % length
    earlier = torch.arange(length, device=where.device)
    first = begins[row, place] + n - 2
    same = (earlier < place[:, None]) & (earlier >= first[:, None])  # [N, T]
    for k in range(n - 1):
        back = ids.roll(k, 1)  # the token k places back; what wraps around lies before `first`
        same &= back[row] == back[row, place][:, None]
    return mask_of(ids.roll(-1, 1)[row], same, vocabulary)


def capped(
    logits: Tensor, copies: Tensor, *, penalty: float, certain: float
) -> tuple[Tensor, Tensor]:
    """Logits with the copies lowered to the bound, and which were lowered, `[N, V]` bool.

    Where the copies together have more than `certain` of the probability nothing else could be
    said, as inside a word, and they stay.

    - `logits`: `[N, V]` float32.
    - `copies`: `[N, V]` bool.
    - `penalty`: what each may have of the probability of the best token that is no copy.
    """
    best = logits.masked_fill(copies, -torch.inf).amax(-1, keepdim=True)
    taken = logits.softmax(-1).masked_fill(~copies, 0).sum(-1, keepdim=True)
    bound = best + math.log(max(penalty, FLOOR))  # a probability of 0 has no logarithm
    lowered = copies & (logits > bound) & (taken <= certain) & best.isfinite()
    return torch.where(lowered, bound, logits), lowered
