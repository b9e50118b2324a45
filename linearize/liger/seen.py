"""What the tokens of a forward pass can see: keys and values of the batch, and of the cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin

from ..ops.sinks import Sinks, first_tokens, numbers
from . import state
from .layout import Layout


@dataclass(frozen=True)
class Seen:
    """Keys and values of P tokens of the cache and the T new ones behind them.

    - `k`: [B, P + T, Hk, D], rotated; `v`: [B, P + T, Hk, *]. Packed documents are one row: B = 1.
    - `mask`: [B, P + T] bool, True = real token; None = all real.
    - `number`: [B or 1, P + T], real tokens of its document before each; None where neither sinks
      nor raw keys ask for it.
    - `sinks`: of each document, None where the layer has none.
    - `raw`: [B, P + T, Hk, D], the keys before rotary embedding, where the layer keeps them.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None
    number: Tensor | None
    sinks: Sinks | None
    raw: Tensor | None = None

    def left(self, T: int, window: int, sinks: int) -> tuple[Tensor, Tensor, Tensor]:
        """What has just left the window of each of the last T tokens, if it is no sink.

        Returns its raw key [B, T, Hk, D], its value [B, T, Hk, *], and [B or 1, T] bool: whether
        there is such a token. What stands where there is none is finite and means nothing.
        """
        keys, there = self.k.shape[1], self.number[:, -T:] >= window + sinks
        if self.mask is None:
            first, last = max(keys - T - window, 0), max(keys - window, 0)
            missing = (0, 0, 0, 0, T - (last - first), 0)
            raw, v = (F.pad(x[:, first:last], missing) for x in (self.raw, self.v))
            return raw, v, there
        order = (~self.mask).int().argsort(dim=1, stable=True)  # real tokens first, in order
        place = (self.mask.cumsum(1)[:, -T:] - 1 - window).clamp(min=0)
        place = order.gather(1, place)[:, :, None, None]
        raw, v = (x.take_along_dim(place, 1) for x in (self.raw, self.v))
        return raw, v, there & self.mask[:, -T:]


def look(
    k: Tensor,
    v: Tensor,
    layout: Layout,
    entry: CacheLayerMixin | None,
    *,
    sinks: int,
    first_state: int,
    raw: Tensor | None = None,
) -> Seen:
    """Find them, and move the layer's window and sinks on by the T tokens of k and v [B, T, Hk, *].

    - `entry`: the layer's of the cache; None = no cache.
    - `sinks`: how many there are; `first_state`: where the cache keeps them.
    - `raw`: keys before rotary embedding, like k, if they are to be kept. The cache has them beside
      the values, and one token more than the window sees: that which is about to leave it.
    """
    first = number = None
    there = entry is None or not entry.get_seq_length()
    counted = bool(sinks) or raw is not None
    if layout.cu_seqlens is not None:
        documents = {"cu_seqlens": layout.cu_seqlens}
        k, v, raw = layout.row(k), layout.row(v), raw if raw is None else layout.row(raw)
        mask = None
        if counted:
            number = numbers(k.shape[1], **documents, device=k.device)
        if sinks:
            first = [first_tokens(x, sinks, **documents) for x in (k, v)]
    elif entry is None:
        mask = layout.mask
        if counted:
            number = numbers(k.shape[1], mask=mask, device=k.device)
        if sinks:
            first = [first_tokens(x, sinks, mask=mask) for x in (k, v)]
    else:
        total = layout.past + k.shape[1] if layout.mask is None else layout.mask.sum(1)
        if sinks:
            how = {"n": sinks, "first": first_state, "mask": layout.mask}
            first = state.keep_sinks(entry, k, v, **how)
        kept = v if raw is None else torch.cat([v, raw], -1)
        k, kept, mask = state.extend_window(entry, k, kept, layout.mask)
        v, raw = kept[..., : v.shape[-1]], raw if raw is None else kept[..., v.shape[-1] :]
        if counted:
            before = total - (k.shape[1] if mask is None else mask.sum(1))
            number = numbers(k.shape[1], mask=mask, before=before, device=k.device)
    return Seen(k, v, mask, number, first and Sinks(*first, number, there), raw)
