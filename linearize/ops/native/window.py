"""Sliding-window attention in C: `ops.window.dense` in single precision, forward and backward."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import call

_SIZES = ("rows", "queries", "keys", "heads", "group", "k_size", "v_size", "window", "sinks")
_Input = call.structure(
    **dict.fromkeys(_SIZES, ctypes.c_long),
    scale=ctypes.c_float,
    **dict.fromkeys(("begins", "q", "k", "v"), ctypes.c_void_p),
    **dict.fromkeys(("q_at", "k_at", "v_at"), call.Strides),
)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    scale: float,
    documents: Tensor | None = None,
    sinks: int = 0,
) -> Tensor:
    """[B, T, H, V]: the last T of the keys' tokens look at the `window` up to themselves.

    With `sinks`, at most `call.LEAST`, they look at the first so many of their sequence too.

    `q` [B, T, H, K], `k` and `v` [B, P + T, Hk, *]; `documents` [T] rises from one sequence packed
    in the row to the next (B = 1, P = 0).
    """
    begins = None if documents is None else torch.searchsorted(documents, documents)
    rows = (call.whole(x) for x in (q, k, v))
    return _Window.apply(*rows, window, sinks, scale, begins)[..., : v.shape[3]]


def _input(
    tensors: tuple[Tensor, ...], window: int, sinks: int, scale: float, begins: Tensor | None
) -> ctypes.Structure:
    q, k, v = tensors
    return _Input(
        rows=q.shape[0],
        queries=q.shape[1],
        keys=k.shape[1],
        heads=k.shape[2],
        group=q.shape[2] // k.shape[2],
        k_size=q.shape[3],
        v_size=v.shape[3],
        window=window,
        sinks=sinks,
        scale=scale,
        begins=call.pointer(begins),
        **call.places("qkv", tensors),
    )


class _Window(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        window: int,
        sinks: int,
        scale: float,
        begins: Tensor | None,
    ) -> Tensor:
        tensors = tuple(call.strided(x.detach()) for x in (q, k, v))
        o = q.new_empty(*q.shape[:3], v.shape[3])
        call.run("window_forward", _input(tensors, window, sinks, scale, begins), o)
        ctx.save_for_backward(*tensors)
        ctx.how = window, sinks, scale, begins
        return o

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        grads = [x.new_zeros(x.shape) for x in tensors]
        o_grad = o_grad.contiguous()
        call.run("window_backward", _input(tensors, *ctx.how), o_grad, *grads)
        return *grads, None, None, None, None
