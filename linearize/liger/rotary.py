"""Rotary embedding in a converted layer: which one it has, and what is kept of it for training.

In some bases it depends on the layer's type. The type of a converted layer names its cache, so the
decoder cannot tell by it which embedding the layer was trained with: it is handed all of them, and
a hook on each attention picks.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class OwnRotary(nn.Module):
    """In place of a decoder's rotary embedding: (cos, sin) [B, T, D] of every type at once."""

    def __init__(self, stock: nn.Module, layer_types: Sequence[str]) -> None:
        super().__init__()
        before = copy.copy(stock.config)
        before.layer_types = list(layer_types)
        self.stock = type(stock)(before, device=next(stock.buffers()).device)

    def forward(
        self, x: Tensor, position_ids: Tensor, layer_type: str
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """Whatever type the decoder asks for, as it does for each type it knows."""
        return {own: self.stock(x, position_ids, own) for own in self.stock.layer_types}


def keep_own_rotary(
    decoder: nn.Module, attentions: Sequence[nn.Module], layer_types: Sequence[str]
) -> None:
    """Give each attention the embedding of its type in `layer_types`, the base's."""
    decoder.rotary_emb = OwnRotary(decoder.rotary_emb, layer_types)
    for attention, own in zip(attentions, layer_types, strict=True):
        attention.rotary_type = own
        attention.register_forward_pre_hook(_pick, with_kwargs=True)


def _pick(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    rotary = kwargs["position_embeddings"][attention.rotary_type]
    return args, {**kwargs, "position_embeddings": rotary}


def turned_again(
    turn: Callable[[], tuple[Tensor, ...]], turned: tuple[Tensor, ...]
) -> contextlib.AbstractContextManager[None]:
    """Inside the block, `turned` is not kept for the backward pass: `turn()` makes it again there.

    The layer keeps queries and keys before rotary embedding for the recurrence anyway, and turning
    them costs next to nothing.
    """
    if not torch.is_grad_enabled():
        return contextlib.nullcontext()
    place = {(x.data_ptr(), x.shape): i for i, x in enumerate(turned)}  # to hold no tensor itself

    def pack(x: Tensor) -> Tensor | int:
        return place.get((x.data_ptr(), x.shape), x)

    def unpack(kept: Tensor | int) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        with torch.no_grad():
            return turn()[kept]

    return torch.autograd.graph.saved_tensors_hooks(pack, unpack)
