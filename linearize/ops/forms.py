"""Running an op in one of its forms: padding and packing become one packed row first.

Every recurrent op has a definition, a chunked form and perhaps a Triton kernel. They differ in
their formulas only; what an op accepts, and what happens around the formula, is here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError
from . import backend as backends
from . import segments
from .native import call
from .packed import Packed, mostly_real

State = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Forms:
    """The forms of one op, all called with its tensors and `initial_state`.

    - `recurrent`: the definition; takes `mask` too.
    - `chunk`, `fla`, `native`: take `cu_seqlens` too; None = there is no such form. The outputs of
      `chunk` may have their tokens split in chunks, [B, n, T / n, H, V].
    """

    recurrent: Callable[..., tuple[Tensor, State]]
    chunk: Callable[..., tuple[Tensor, State]]
    fla: Callable[..., tuple[Tensor, State]] | None = None
    native: Callable[..., tuple[Tensor, State]] | None = None


def run(
    forms: Forms,
    *tensors: Tensor,
    shapes: tuple[tuple[int, ...], ...],
    initial_state: State | None,
    mask: Tensor | None,
    cu_seqlens: Tensor | None,
    backend: str,
) -> tuple[Tensor, State]:
    """Compute an op on `tensors`, each [B, T, ...], q first and v third.

    - `shapes`: of each state without its first axis, the sequences.

    Computes in float32 (float64 for float64 input); the output has v's dtype. Raises `UsageError`
    where mask, boundaries or states do not fit, or the backend cannot run here.
    """
    q, out_dtype = tensors[0], tensors[2].dtype
    packed = Packed.of(mask, cu_seqlens, *q.shape[:2])
    sequences = q.shape[0] if packed is None else packed.cu_seqlens.numel() - 1
    _check_states(initial_state, sequences, shapes)
    dtype = torch.promote_types(q.dtype, torch.float32)
    tensors = tuple(x.to(dtype) for x in tensors)
    chosen = backends.choose(
        backend,
        device=q.device,
        length=q.shape[1],
        kernel=forms.fla is not None,
        native=lambda: forms.native is not None and call.takes(*tensors),
    )
    state = on_states(lambda x: x.to(dtype), initial_state)
    if chosen == "recurrent" and cu_seqlens is None:
        o, state = forms.recurrent(*tensors, initial_state=state, mask=mask)
    elif chosen in ("chunk", "native") and mask is not None and mostly_real(mask):
        # in every op a step whose arguments are 0, all but q, leaves the state as it is
        there = mask.view(*mask.shape, *(1,) * (q.ndim - 2))
        first, *rest = tensors
        row = (first, *(x.where(there, x.new_zeros(())) for x in rest))
        o, state = _form(forms, chosen, row, shapes, initial_state=state)
        o = o.where(there, o.new_zeros(()))
    elif packed is None:
        o, state = _form(forms, chosen, tensors, shapes, initial_state=state)
    else:
        row = tuple(packed.pack(x) for x in tensors)
        if chosen == "recurrent":
            o, state = _one_by_one(forms.recurrent, row, state, packed.cu_seqlens)
        else:
            how = {"initial_state": state, "cu_seqlens": packed.cu_seqlens}
            o, state = _form(forms, chosen, row, shapes, **how)
        o = packed.unpack(o)
    return o.to(out_dtype), state


def _form(
    forms: Forms,
    chosen: str,
    tensors: tuple[Tensor, ...],
    shapes: tuple[tuple[int, ...], ...],
    *,
    initial_state: State | None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, State]:
    """The chunked form on the CPU goes over long rows in segments; a kernel has its own ways."""
    form, q = getattr(forms, chosen), tensors[0]
    cut = chosen == "chunk" and segments.pay(q.device)
    parts = segments.pieces(*q.shape[:2], len(tensors), cu_seqlens) if cut else []
    if len(parts) < 2:
        how = {} if cu_seqlens is None else {"cu_seqlens": cu_seqlens}
        o, last = form(*tensors, initial_state=initial_state, **how)
        return o.reshape(*q.shape[:3], tensors[2].shape[3]), last
    sequences = q.shape[0] if cu_seqlens is None else cu_seqlens.numel() - 1
    if initial_state is None:
        initial_state = tuple(q.new_zeros(sequences, *shape) for shape in shapes)
    several = isinstance(initial_state, tuple) and len(shapes) > 1
    states = initial_state if isinstance(initial_state, tuple) else (initial_state,)

    def step(
        piece: segments.Piece, cut: tuple[Tensor, ...], before: segments.States
    ) -> tuple[Tensor, segments.States]:
        start = before if several else before[0]
        o, after = form(*cut, initial_state=start, cu_seqlens=piece.cu_seqlens)
        return o, after if several else (after,)

    shape = (q.shape[2], tensors[2].shape[3])
    o, last = segments.run(step, parts, tensors, states, shape)
    return o, last if several else last[0]


def on_states(change: Callable[[Tensor], Tensor], state: State | None) -> State | None:
    """A state, or each of several, changed."""
    if isinstance(state, tuple):
        return tuple(change(x) for x in state)
    return None if state is None else change(state)


def check_heads(q: Tensor, k: Tensor, v: Tensor, **more: tuple[Tensor, tuple[int, ...]]) -> None:
    """q [B, T, H, K], k [B, T, Hk, K], v [B, T, Hk, V], and `more` tensors [B, T, Hk, *].

    Each of `more` comes with the widths it may have. Raises `UsageError` naming all shapes.
    """
    B, T, H, K = q.shape
    Hk = v.shape[2]
    fit = k.shape == (B, T, Hk, K) and v.shape[:2] == (B, T)
    fit &= all(x.shape[:3] == (B, T, Hk) and x.shape[3] in wide for x, wide in more.values())
    if not fit:
        named = {"q": q, "k": k, "v": v} | {name: x for name, (x, _) in more.items()}
        given = ", ".join(f"{name} {tuple(x.shape)}" for name, x in named.items())
        widths = (f"{name} [B, T, Hk, {_either(wide)}]" for name, (_, wide) in more.items())
        raise UsageError(
            f"{given} do not fit: "
            + ", ".join(["q [B, T, H, K]", "k [B, T, Hk, K]", "v [B, T, Hk, V]", *widths])
        )
    if H % Hk:
        raise UsageError(f"{H} query heads are not a multiple of {Hk} key/value heads")


def _either(widths: tuple[int, ...]) -> str:
    return " or ".join(map(str, widths))


def _check_states(given: State | None, sequences: int, shapes: tuple[tuple[int, ...], ...]) -> None:
    if given is None:
        return
    found = [tuple(x.shape) for x in (given if isinstance(given, tuple) else (given,))]
    wanted = [(sequences, *shape) for shape in shapes]
    if found != wanted:
        raise UsageError(
            f"initial_state {', '.join(map(str, found))} must be [sequences, Hk, ...] = "
            f"{', '.join(str(list(x)) for x in wanted)}"
        )


def _one_by_one(
    form: Callable[..., tuple[Tensor, State]],
    row: tuple[Tensor, ...],
    state: State | None,
    cu_seqlens: Tensor,
) -> tuple[Tensor, State]:
    outputs, states = [], []
    for n, (start, end) in enumerate(
        zip(cu_seqlens.tolist(), cu_seqlens.tolist()[1:], strict=False)
    ):
        first = on_states(lambda x, n=n: x[n : n + 1], state)
        o, last = form(*(x[:, start:end] for x in row), initial_state=first)
        outputs.append(o)
        states.append(last)
    if isinstance(states[0], tuple):
        return torch.cat(outputs, 1), tuple(torch.cat(x) for x in zip(*states, strict=True))
    return torch.cat(outputs, 1), torch.cat(states)
