"""The recurrent state and the window inside transformers' own cache (`hybrid_sliding` entries).

The window holds the last *real* tokens of each row, right-aligned; what is missing is on the left
and is told from the padding mask. Keys and values of sinks are kept as further recurrent states,
behind those of the gate, so that whatever transformers does to a cache happens to them too.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from ..ops.sinks import first_tokens

State = Tensor | tuple[Tensor, ...]


def read_state(entry: CacheLayerMixin, count: int = 1) -> State | None:
    """[B, Hk, K, V] float32, a tuple where the gate has several, or None before the first token.

    - `entry`: the layer's of a cache. `count`: states that the gate has.

    `Cache.get_recurrent_state` cannot be used: it answers None until a convolution state has been
    written, and these layers have no convolution.
    """
    if not entry.is_recurrent_states_initialized[0]:
        return None
    states = tuple(entry.recurrent_states[i] for i in range(count))
    return states if count > 1 else states[0]


def write_state(entry: CacheLayerMixin, state: State) -> None:
    """Store the state or states, copied in place so that their addresses stay."""
    for i, one in enumerate(state if isinstance(state, tuple) else (state,)):
        entry.update_recurrent_state(one, state_idx=i)
        entry.has_previous_state[i] = True


def extend_window(
    entry: CacheLayerMixin, k: Tensor, v: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Append k and v [B, T, Hk, D]; return what the T tokens can see.

    - `mask`: [B, past + T] bool of all tokens so far, or None when all are real.

    Returns keys and values [B, P + T, Hk, D], P at most the entry's window - 1, and their mask
    [B, P + T], None when all are real.
    """
    T, before = k.shape[1], entry.get_seq_length()
    static = hasattr(entry, "max_cache_len")
    past = min(before, (entry.max_cache_len if static else entry.sliding_window) - 1)
    keys, values = entry.update(k.transpose(1, 2), v.transpose(1, 2))
    if static:  # until it is full, a static entry returns its own buffer, empty places included
        keys, values = keys[:, :, : past + T], values[:, :, : past + T]
    visible = None
    if mask is not None:
        real = mask[:, :before].sum(1, keepdim=True)
        old = torch.arange(past, device=mask.device) >= past - real
        visible = torch.cat([old, mask[:, before:]], 1)
    padded = mask is not None and not mask[:, before:].all()
    if padded:
        keys, values = _keep_real(entry, static, keys, values, visible)
    elif T > 1 and not static:  # a slice would keep the whole prompt's keys and values in memory
        entry.keys, entry.values = entry.keys.contiguous(), entry.values.contiguous()
    return keys.transpose(1, 2), values.transpose(1, 2), visible


def _keep_real(
    entry: Any, static: bool, keys: Tensor, values: Tensor, visible: Tensor
) -> tuple[Tensor, Tensor]:
    """Store the last real tokens of each row instead of its last places.

    Returns keys and values that share no memory with what is stored.
    """
    stored = min(entry.keys.shape[2], keys.shape[2])
    order = visible.int().argsort(dim=1, stable=True)[:, -stored:]  # padding first, then in order
    kept = [x.take_along_dim(order[:, None, :, None], 2) for x in (keys, values)]
    if static:
        keys, values = keys.clone(), values.clone()
        entry.keys[:, :, :stored], entry.values[:, :, :stored] = kept
    else:
        entry.keys, entry.values = kept
    return keys, values


def keep_sinks(
    entry: CacheLayerMixin, k: Tensor, v: Tensor, *, n: int, first: int, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Keys and values [B, n, Hk, D] of the first n real tokens, those in k and v [B, T, Hk, D] too.

    To be called before `extend_window`.

    - `first`: index of the two states; `mask`: [B, past + T] as there.
    """
    before, states = entry.get_seq_length(), entry.recurrent_states
    if mask is None and before >= n:
        return states[first], states[first + 1]
    real = None if mask is None else mask[:, before:]
    seen = before if mask is None else mask[:, :before].sum(1)[:, None]
    place = (torch.arange(n, device=k.device) - seen).view(-1, n, 1, 1)  # among the new tokens
    for i, x in enumerate((k, v), start=first):
        x = first_tokens(x, n, mask=real)
        if entry.is_recurrent_states_initialized[i]:
            new = x.take_along_dim(place.clamp(min=0), 1)
            x = new.where(place >= 0, states[i])
        entry.update_recurrent_state(x, state_idx=i)
        entry.has_previous_state[i] = True
    return states[first], states[first + 1]


def cache_bytes(cache: Cache) -> int:
    """Bytes of every tensor the cache holds."""
    total = 0
    for entry in cache.layers:
        tensors = [getattr(entry, "keys", None), getattr(entry, "values", None)]
        tensors += list(getattr(entry, "recurrent_states", {}).values())
        total += sum(t.untyped_storage().nbytes() for t in tensors if t is not None)
    return total


def snapshot(cache: Cache, rows: Tensor | None = None) -> Cache:
    """A copy of a cache, from which and beside which one can go on.

    - `rows`: [N] int64, the rows of the copy; a row may be named several times. None = all.

    Keys, values, recurrent and convolution states of every entry of transformers' dynamic caches,
    and a looped model's cache. Going on from the original or from another copy changes nothing
    here, so a snapshot can be taken of a snapshot as often as there are continuations.
    """
    if hasattr(cache, "select"):  # a looped model's own cache
        every = torch.arange(len(cache.lengths))
        copied = copy.copy(cache)
        copied.select(every if rows is None else rows)
        return copied

    def taken(x: Any, grows: bool) -> Any:
        if isinstance(x, dict):
            return {key: taken(value, grows) for key, value in x.items()}
        if not isinstance(x, Tensor):
            return x
        if grows and len(x) == 1 and rows is not None:
            return x.expand(len(rows), *x.shape[1:])
        if grows and (rows is None or rows.tolist() == list(range(len(x)))):
            return x
        return x.clone() if rows is None else x.index_select(0, rows.to(x.device))

    copied = copy.copy(cache)
    copied.layers = [copy.copy(entry) for entry in cache.layers]
    for entry in copied.layers:
        grows = type(entry) is DynamicLayer  # keys and values are never written in place
        # flags by state, such as has_previous_state, are dicts too: copied, not shared
        for name, value in vars(entry).items():
            if isinstance(value, dict) or (isinstance(value, Tensor) and value.ndim > 1):
                setattr(entry, name, taken(value, grows))
    return copied
