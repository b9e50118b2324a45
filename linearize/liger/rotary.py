"""Bases with a rotary embedding per layer type: each layer keeps its own when it is converted.

The type of a converted layer names its cache, so the decoder cannot tell by it which embedding the
layer was trained with. It is handed all of them, and a hook on each attention picks.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

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
