"""Gated linear attention in C: `ops.gla.chunk` in single precision, forward and backward."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from . import call

_LONG, _POINTER = ctypes.c_long, ctypes.c_void_p
_Input = call.structure(
    **dict.fromkeys(("sequences", "heads", "group", "k_size", "v_size", "gates"), _LONG),
    bounds=_POINTER,
    length=_LONG,
    **dict.fromkeys(("q", "k", "v", "g"), _POINTER),
    **dict.fromkeys(("q_at", "k_at", "v_at", "g_at"), call.Strides),
)
_Gradients = call.structure(**dict.fromkeys(("o", "q", "k", "v", "g", "states"), _POINTER))


def gla(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    *,
    initial_state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, V] and the last states [S, Hk, K, V]; arguments as in `ops.gla.chunk`."""
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        initial_state = q.new_zeros(sequences, v.shape[2], q.shape[3], v.shape[3])
    (K, V), per_head = (q.shape[3], v.shape[3]), g.shape[3] == 1
    rows = (call.whole(q), call.whole(k), call.whole(v), g if per_head else call.whole(g))
    o, states = _Gla.apply(*rows, call.whole(initial_state, 2), cu_seqlens)
    return o[..., :V], states[..., :K, :V]


def _input(tensors: tuple[Tensor, ...], cu_seqlens: Tensor | None) -> ctypes.Structure:
    q, k, v, g = tensors
    heads = v.shape[2]
    return _Input(
        sequences=q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1,
        heads=heads,
        group=q.shape[2] // heads,
        k_size=q.shape[3],
        v_size=v.shape[3],
        gates=g.shape[3],
        bounds=call.pointer(cu_seqlens),
        length=0 if cu_seqlens is not None else q.shape[1],
        **call.places("qkvg", tensors),
    )


class _Gla(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        g: Tensor,
        initial_state: Tensor,
        cu_seqlens: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        tensors = tuple(call.strided(x.detach()) for x in (q, k, v, g))
        o = q.new_empty(*q.shape[:3], v.shape[3])
        states = initial_state.detach().clone(memory_format=torch.contiguous_format)
        call.run("gla_forward", _input(tensors, cu_seqlens), o, states)
        ctx.save_for_backward(*tensors, initial_state)
        ctx.cu_seqlens = cu_seqlens
        return o, states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor, state_grad: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, states = ctx.saved_tensors
        grads = [x.new_empty(x.shape) for x in tensors]
        o_grad, states = o_grad.contiguous(), states.contiguous()
        first = state_grad.clone(memory_format=torch.contiguous_format)
        given = _Gradients(*map(call.pointer, (o_grad, *grads, first)))
        call.run("gla_backward", _input(tuple(tensors), ctx.cu_seqlens), states, given)
        return *grads, first, None
