"""What the tokens of a forward pass can see: keys and values of the batch, and of the cache."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor
from transformers import Cache

from ..ops.sinks import Sinks, first_tokens, numbers
from . import state
from .layout import Layout


@dataclass(frozen=True)
class Seen:
    """Keys and values of P tokens of the cache and the T new ones behind them.

    - `k`: [B, P + T, Hk, D], rotated; `v`: [B, P + T, Hk, *]. Packed documents are one row: B = 1.
    - `mask`: [B, P + T] bool, True = real token; None = all real.
    - `number`: [B or 1, P + T], real tokens of its document before each.
    - `sinks`: of each document, None where the layer has none.
    """

    k: Tensor
    v: Tensor
    mask: Tensor | None
    number: Tensor
    sinks: Sinks | None


def look(
    k: Tensor,
    v: Tensor,
    layout: Layout,
    cache: Cache | None,
    *,
    layer: int,
    sinks: int,
    first_state: int,
) -> Seen:
    """Find them, and move the cache's window and sinks on by the T tokens of k and v [B, T, Hk, *].

    - `sinks`: how many there are; `first_state`: where the cache keeps them.
    """
    if layout.cu_seqlens is not None:
        documents = {"cu_seqlens": layout.cu_seqlens}
        k, v = layout.row(k), layout.row(v)
        mask, number = None, numbers(k.shape[1], **documents, device=k.device)
        first = [first_tokens(x, sinks, **documents) for x in (k, v)] if sinks else None
    elif cache is None:
        mask = layout.mask
        number = numbers(k.shape[1], mask=mask, device=k.device)
        first = [first_tokens(x, sinks, mask=mask) for x in (k, v)] if sinks else None
    else:
        total = layout.past + k.shape[1] if layout.mask is None else layout.mask.sum(1)
        first = None
        if sinks:
            how = {"n": sinks, "first": first_state, "mask": layout.mask}
            first = state.keep_sinks(cache, layer, k, v, **how)
        k, v, mask = state.extend_window(cache, layer, k, v, layout.mask)
        before = total - (k.shape[1] if mask is None else mask.sum(1))
        number = numbers(k.shape[1], mask=mask, before=before, device=k.device)
    return Seen(k, v, mask, number, first and Sinks(*first, number))
