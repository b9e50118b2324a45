"""What a compiled step runs in place of torch's own operations, on the CPU in float32.

Products with weights go to `ops.native.linear`. What a single token does with its window and its
state is too little for a library call: spelt out as sums, it becomes loops of the compiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops.native import linear

_aten = torch.ops.aten
LITTLE = 2**19  # multiplications up to which a product is spelt out


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What a tracer puts in the place of operations, by operation."""
    return {
        _aten.mm.default: _product,
        _aten.addmm.default: _product_and_bias,
        _aten.bmm.default: _batched,
        _aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    }


def _product(x: Tensor, across: Tensor) -> Tensor:
    w = across.t()
    return linear.operation()(x, w) if linear.takes(x, w) else NotImplemented


def _product_and_bias(
    bias: Tensor, x: Tensor, across: Tensor, *, beta: float = 1, alpha: float = 1
) -> Tensor:
    y = _product(x, across) if beta == alpha == 1 else NotImplemented
    return y if y is NotImplemented else y + bias


def _batched(a: Tensor, b: Tensor) -> Tensor:
    if a.device.type != "cpu" or a.numel() * b.shape[-1] > LITTLE:
        return NotImplemented
    return (a[..., None] * b[:, None]).sum(-2)


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    attn_mask: Tensor | None = None,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """The output and the logarithm of the sum of each row, as the operation returns them."""
    if q.shape[2] > 1 or q.numel() * k.shape[2] > LITTLE:
        return NotImplemented
    grouped = q.unflatten(1, (k.shape[1], -1))  # [B, Hk, group, 1, K]
    scores = (grouped * k[:, :, None]).sum(-1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        scores = scores + attn_mask.expand(*q.shape[:2], -1, -1).reshape(scores.shape)
    o = (scores.softmax(-1)[..., None] * v[:, :, None]).sum(-2)
    return o.view(*q.shape[:-1], -1), scores.logsumexp(-1).view(*q.shape[:-1])
