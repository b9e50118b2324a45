"""What a model would say if nothing it repeats could be its first choice.

A token that completes an n-gram of its document again is a copy. Of all that could come next, the
copies may have at most `penalty` times the probability of the best token that is none: DITTO's
bound (Xu et al. 2022) with the best other choice in the place of the copy before. Ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .ditto import FLOOR


class Copies:
    """Which tokens would complete an n-gram again, at any place of some rows.

    - `ids`: `[B, T]` int64.
    - `begins`: `[B, T]` int64, where in its row each token's document begins.
    - `n`: at least 2.
    """

    def __init__(self, ids: Tensor, begins: Tensor, n: int) -> None:
        self._ids, self._begins, self._length = ids, begins, ids.shape[1]
        # [n - 1, B, T], the token so many places back; what wraps around is no n-gram's place
        self._back = torch.stack([ids.roll(k, 1) for k in range(n - 1)])

    def at(self, where: Tensor, vocabulary: int) -> Tensor:
        """`[N, vocabulary]` bool, for places numbered row by row, `[N]` int64.

        True for every token behind an earlier n - 1 tokens of the document that are the same as the
        last n - 1 up to this place.
        """
        row, place = where // self._length, where % self._length
        earlier = torch.arange(self._length, device=where.device)
        first = self._begins[row, place] + len(self._back) - 1
        same = (earlier < place[:, None]) & (earlier >= first[:, None])  # [N, T]
        for back in self._back:
            same &= back[row] == back[row, place][:, None]
        # What is not the same goes to a column beyond the vocabulary.
        columns = self._ids.roll(-1, 1)[row].masked_fill(~same, vocabulary)
        found = torch.zeros(len(where), vocabulary + 1, dtype=torch.bool, device=where.device)
        return found.scatter_(1, columns, True)[:, :vocabulary]


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
    # FLOOR: a probability of 0 has no logarithm
    bound = best + torch.tensor(max(penalty, FLOOR)).log().to(best)
    lowered = copies & (logits > bound) & (taken <= certain) & best.isfinite()
    return torch.where(lowered, bound, logits), lowered
