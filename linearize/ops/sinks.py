"""Attention sinks: the first tokens of each sequence stay visible after the window has left them.

Source: Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (arXiv 2309.17453);
here positions stay those of the text, so that a window as long as the text changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sinks:
    """Keys and values of the first n real tokens of S sequences, and where the other keys stand.

    - `k`: [S, n, Hk, K], rotated; `v`: [S, n, Hk, V]. What a shorter sequence lacks may be
      anything finite. S = B, or the number of packed sequences.
    - `number`: [B or 1, keys] int64, real tokens of its sequence before each key of the call.
    - `there`: whether they stand among the keys of the call too, as where no cache holds the past.
    """

    k: Tensor
    v: Tensor
    number: Tensor
    there: bool = False

    def visible(self, number: Tensor, window: int) -> Tensor:
        """[...] numbers of queries -> [..., n] bool: sinks that their window does not hold."""
        n = torch.arange(self.k.shape[1], device=number.device)
        return n + window <= number[..., None]


def first_tokens(
    x: Tensor, n: int, *, mask: Tensor | None = None, cu_seqlens: Tensor | None = None
) -> Tensor:
    """The first `n` real tokens of each sequence of x [B, T, ...] -> [S, n, ...].

    Behind the end of a shorter sequence stands some other token, or zeros.
    """
    if cu_seqlens is not None:
        places = cu_seqlens[:-1, None] + torch.arange(n)
        return x[0, places.clamp(max=x.shape[1] - 1).to(x.device)]
    if mask is None:
        x = x[:, :n]
    else:
        order = (~mask).int().argsort(dim=1, stable=True)[:, :n]  # real tokens first, in order
        x = x[torch.arange(len(x), device=x.device)[:, None], order]
    missing = n - x.shape[1]
    return torch.nn.functional.pad(x, (0, 0) * (x.ndim - 2) + (0, missing)) if missing else x


def numbers(
    keys: int,
    *,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    before: Tensor | int = 0,
    device: torch.device | None = None,
) -> Tensor:
    """[B or 1, keys] int64: real tokens of its sequence before each key.

    - `before`: [B], or one for all: how many came before the first key.
    """
    if mask is not None:
        behind = mask.cumsum(1) - mask.long()
        return behind + torch.as_tensor(before, device=mask.device).view(-1, 1)
    places = torch.arange(keys, device=device)
    if cu_seqlens is not None:
        starts = torch.repeat_interleave(cu_seqlens[:-1], cu_seqlens.diff())
        places = places - starts.to(places.device)
    return (places + before)[None]
