"""What each layer must know of a batch besides its numbers: padding, documents, past, mode.

Made once per forward pass by a hook on the decoder, handed down to every attention module as the
keyword `layout`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.packed import Packed, document_ids


@dataclass
class Layout:
    """One forward pass over [B, T] tokens.

    - `mode`: "liger", "window" (recurrence off) or "softmax" (the base's own attention).
    - `past`: tokens before these in the cache.
    - `mask`: [B, past + T] bool, True = real token; None = all real.
    - `cu_seqlens`: [S + 1] document boundaries in the batch laid out as one row; None = one
      document per row.
    - `prefix`: [B, T] bool, True = token that is encoded without causality; None = none is.
    - `settled`: known that no padding is within reach of converted layers any more.
    - `entry`: read and moved on in place of the layer's own entry of the cache, see `step`.
    """

    mode: str
    past: int
    mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    prefix: Tensor | None = None
    settled: bool = False
    entry: Any = None
    _masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def row(self, x: Tensor) -> Tensor:
        """[B, T, ...], or [1, B T, ...] where rows hold several documents."""
        return x if self.cu_seqlens is None else x.flatten(0, 1).unsqueeze(0)

    def softmax_mask(
        self, T: int, keys: int, window: int | None, device: torch.device
    ) -> Tensor | None:
        """[B or 1, 1, T, keys] bool for full softmax attention; None = plain causal, no past."""
        if keys == T and self.mask is None and self.cu_seqlens is None and window is None:
            return None
        key = (T, keys, window)
        if key not in self._masks:
            self._masks[key] = self._softmax_mask(T, keys, window, device)
        return self._masks[key]

    def _softmax_mask(self, T: int, keys: int, window: int | None, device: torch.device) -> Tensor:
        i = torch.arange(self.past, self.past + T, device=device)[:, None]
        j = torch.arange(keys, device=device)  # a static cache has places beyond past + T
        visible = (j <= i)[None]
        if window is not None:
            visible = visible & (i - j < window)
        if self.cu_seqlens is not None:
            ids = document_ids(self.cu_seqlens, device).view(-1, T)
            visible = visible & (ids[:, :, None] == ids[:, None, :])
        if self.mask is not None:
            real = torch.nn.functional.pad(self.mask, (0, keys - self.mask.shape[1]))
            visible = visible & real[:, None, :]
        return (visible | (i == j))[:, None]  # no empty rows: a masked query sees itself


def carry_layout(layers: Iterable[nn.Module], attention: str) -> None:
    """Bring the layout to attentions whose layer drops keywords that it does not know.

    It travels in place of the mask, which such a layer hands on and nobody needs.
    """
    for layer in layers:
        layer.register_forward_pre_hook(_pack, with_kwargs=True)
        getattr(layer, attention).register_forward_pre_hook(_unpack, with_kwargs=True)


def _pack(layer: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return args, {**kwargs, "attention_mask": kwargs["layout"]}


def _unpack(attention: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict]:
    return args, {**kwargs, "attention_mask": None, "layout": kwargs["attention_mask"]}


def document_starts(position_ids: Tensor, batch: int) -> Tensor | None:
    """Boundaries of documents packed in [B, T] rows, read from positions that restart.

    The convention of transformers for packed rows. None when no row holds a second document.
    """
    starts = position_ids.diff(dim=1) != 1
    if not starts.any():
        return None
    starts = torch.nn.functional.pad(starts, (1, 0), value=True).expand(batch, -1)
    return Packed.from_starts(starts).cu_seqlens
