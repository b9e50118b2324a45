"""The recurrence of a layer, gates and feature maps included, a segment of tokens at a time.

Feature maps and gates of a whole row are larger than the projections they are made from. Made a
segment at a time, where the op goes in segments anyway, they need no memory of the row's size, and
are computed again in the backward pass, which keeps the projections alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..ops import segments
from .state import State

Op = Callable[..., tuple[Tensor, State]]


def recur(
    op: Op,
    prepare: Callable[..., tuple[Tensor, ...]],
    tensors: tuple[Tensor, ...],
    *,
    states: tuple[tuple[int, ...], ...],
    width: int,
    initial_state: State | None = None,
    mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    """`op` on what `prepare` makes of `tensors`, [B, T, ...] each, token by token; q first.

    - `states`: shape of each state of one sequence; `width`: of the outputs, V.
    - `initial_state`, `mask`, `cu_seqlens`: as the ops take them.

    Returns outputs [B, T, H, V] float32 and the state, a tuple where there are several.
    """
    q = tensors[0]
    parts = []
    # for the backward pass a short row, too: what is made again is not kept
    worth = torch.is_grad_enabled() or q.shape[0] * q.shape[1] > segments.SEGMENT
    if worth and segments.pay(q.device) and mask is None:
        parts = segments.pieces(*q.shape[:2], len(tensors), cu_seqlens)
    if not parts:
        how: dict[str, Any] = {"initial_state": initial_state, "mask": mask}
        return op(*prepare(*tensors), **how, cu_seqlens=cu_seqlens)
    if initial_state is None:
        sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
        made = (q.new_zeros(sequences, *shape, dtype=torch.float32) for shape in states)
        initial_state = tuple(made) if len(states) > 1 else next(made)
    several = isinstance(initial_state, tuple)

    def step(
        piece: segments.Piece, cut: tuple[Tensor, ...], before: segments.States
    ) -> tuple[Tensor, segments.States]:
        start = before if several else before[0]
        o, after = op(*prepare(*cut), initial_state=start, cu_seqlens=piece.cu_seqlens)
        return o, after if several else (after,)

    given = initial_state if several else (initial_state,)
    o, last = segments.run(step, parts, tensors, given, (q.shape[2], width))
    return o, last if several else last[0]
