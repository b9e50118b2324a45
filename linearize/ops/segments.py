"""Long rows a segment at a time, so that what a segment computes stays in the processor's cache.

Whole rows at once make temporaries of the rows' size: they come from memory, and for the backward
pass they stay there. A segment's are small, are used up at once, and are computed again for the
backward pass, which keeps the inputs and the state at each segment's start alone.
Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174), section 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .native import call

SEGMENT = 1024  # tokens of all rows together (docs/speed.md)
UNIT = 64  # segments of a row that goes on are multiples of it, so that all chunks are full

States = tuple[Tensor, ...]


class Piece(NamedTuple):
    """What one step of the loop computes.

    - `tokens`: of the row or rows that it gives outputs for.
    - `cuts`: for each tensor, what the step reads along its second axis.
    - `sequences`: whose states it moves on.
    - `cu_seqlens`: boundaries of packed sequences among its tokens; None = one per row.
    """

    tokens: slice
    cuts: tuple[slice, ...]
    sequences: slice = slice(None)
    cu_seqlens: Tensor | None = None


Step = Callable[[Piece, tuple[Tensor, ...], States], tuple[Tensor, States]]


def pay(device: torch.device) -> bool:
    """Whether segments are worth it there: an accelerator has better use for whole rows."""
    return device.type == "cpu"


def tokens(batch: int, unit: int) -> int:
    """Tokens of each row in a segment of `batch` rows, a multiple of `unit`."""
    return max(SEGMENT // (unit * max(batch, 1)), 1) * unit


def pieces(batch: int, length: int, count: int, cu_seqlens: Tensor | None) -> list[Piece]:
    """Segments of `count` tensors [B, T, ...], in order; short packed sequences share one."""
    if cu_seqlens is None:
        size = tokens(batch, UNIT)
        return [
            Piece(at, (at,) * count)
            for at in (slice(n, min(n + size, length)) for n in range(0, length, size))
        ]
    made, ends = [], cu_seqlens.tolist()
    first = 0  # sequence that the piece in the making begins with
    for n in range(1, len(ends)):
        long = ends[n] - ends[n - 1] > SEGMENT
        if n - 1 > first and (long or ends[n] - ends[first] > SEGMENT):
            made.append(_together(ends, first, n - 1, count))
            first = n - 1
        if long:
            for start in range(ends[first], ends[n], SEGMENT):
                at = slice(start, min(start + SEGMENT, ends[n]))
                made.append(Piece(at, (at,) * count, slice(first, n)))
            first = n
    if first < len(ends) - 1:
        made.append(_together(ends, first, len(ends) - 1, count))
    return made


def _together(ends: list[int], first: int, last: int, count: int) -> Piece:
    at = slice(ends[first], ends[last])
    own = torch.tensor(ends[first : last + 1]) - ends[first]
    return Piece(at, (at,) * count, slice(first, last), own)


def run(
    step: Step,
    parts: Sequence[Piece],
    tensors: tuple[Tensor, ...],
    states: States,
    shape: tuple[int, ...],
) -> tuple[Tensor, States]:
    """Outputs of `step` on each piece, put together along the second axis, and the last states.

    - `tensors`: [B, ...] each, cut as the pieces say; gradients of overlapping cuts are added.
    - `states`: [S, ...] each, rows of which go from piece to piece.
    - `step`: (piece, what is cut from the tensors, rows of the states) -> outputs for the piece's
      tokens and the rows moved on. It is called again in the backward pass, where C forms compute
      nothing: what it does to their results must be linear. Outputs are [B, tokens, *shape], or
      their axes split further, in any layout: they are copied once.
    - `shape`: of one token's output.
    """
    if torch.is_grad_enabled() and any(x.requires_grad for x in (*tensors, *states)):
        o, *states = _Segments.apply(step, parts, shape, len(tensors), *tensors, *states)
        return o, tuple(states)
    return _forward(step, parts, tensors, states, shape)


def _forward(
    step: Step,
    parts: Sequence[Piece],
    tensors: tuple[Tensor, ...],
    states: States,
    shape: tuple[int, ...],
    keep: Callable[[States], Any] = lambda states: None,
) -> tuple[Tensor, States]:
    states, o = tuple(x.clone() for x in states), None
    for piece in parts:
        before = tuple(x[piece.sequences].clone() for x in states)
        keep(before)
        cut = tuple(x[:, at] for x, at in zip(tensors, piece.cuts, strict=True))
        done, after = step(piece, cut, before)
        if o is None:
            o = done.new_empty(done.shape[0], parts[-1].tokens.stop, *shape)
        o[:, piece.tokens].view(done.shape).copy_(done)
        for x, rows in zip(states, after, strict=True):
            x[piece.sequences] = rows
    return o, states


class _Segments(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        step: Step,
        parts: Sequence[Piece],
        shape: tuple[int, ...],
        count: int,
        *given: Tensor,
    ) -> tuple[Tensor, ...]:
        starts: list[Tensor] = []
        o, states = _forward(step, parts, given[:count], given[count:], shape, starts.extend)
        ctx.step, ctx.parts, ctx.count = step, parts, count
        ctx.save_for_backward(*given[:count], *starts)
        return o, *states

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, o_grad: Tensor, *state_grads: Tensor) -> tuple[Tensor | None, ...]:
        saved, wanted = ctx.saved_tensors, ctx.needs_input_grad[4:]
        tensors, starts = saved[: ctx.count], saved[ctx.count :]
        per_piece = len(state_grads)
        grads = [torch.zeros_like(x) for x in tensors]
        state_grads = [x.clone() for x in state_grads]
        for n in reversed(range(len(ctx.parts))):
            piece = ctx.parts[n]
            cut = [
                x[:, at].detach().requires_grad_(want)
                for x, at, want in zip(tensors, piece.cuts, wanted, strict=False)
            ]
            before = [
                x.detach().requires_grad_() for x in starts[n * per_piece : (n + 1) * per_piece]
            ]
            with torch.enable_grad(), call.graph_alone():
                done, after = ctx.step(piece, tuple(cut), tuple(before))
            leaves = [x for x in (*cut, *before) if x.requires_grad]
            own_grad = o_grad[:, piece.tokens].reshape(done.shape)
            given = (own_grad, *(x[piece.sequences] for x in state_grads))
            found = dict(
                zip(
                    map(id, leaves),
                    torch.autograd.grad((done, *after), leaves, given, allow_unused=True),
                    strict=True,
                )
            )
            for total, x, at in zip(grads, cut, piece.cuts, strict=True):
                if (own := found.get(id(x))) is not None:
                    total[:, at] += own
            for total, x in zip(state_grads, before, strict=True):
                own = found[id(x)]
                total[piece.sequences] = 0.0 if own is None else own
        every = (*grads, *state_grads)
        return (
            None,
            None,
            None,
            None,
            *(x if w else None for x, w in zip(every, wanted, strict=True)),
        )
