"""Handing tensors to the C forms: which they take, and the structures both sides know."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterable, Iterator
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor

from . import build

LEAST = 16  # numbers per head are made multiples of it: whole vectors (matrix.h)
Strides = ctypes.c_long * 3


def takes(*tensors: Tensor) -> bool:
    """Whether the C forms can compute on tensors: on the CPU, in float32, not while a compiler
    traces.
    """
    return (
        all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
        and not torch.compiler.is_compiling()
        and build.ready()
    )


_graph_alone: ContextVar[bool] = ContextVar("linearize_graph_alone", default=False)


@contextlib.contextmanager
def graph_alone() -> Iterator[None]:
    """Inside the block forward passes compute nothing; their outputs hold anything.

    For a graph that is made again for its backward pass, where inputs are all that is needed.
    """
    token = _graph_alone.set(True)
    try:
        yield
    finally:
        _graph_alone.reset(token)


def whole(x: Tensor, axes: int = 1) -> Tensor:
    """x with zeros up to the next multiple of `LEAST` along its last axes."""
    missing = [-x.shape[-1 - axis] % LEAST for axis in range(axes)]
    return F.pad(x, [n for own in missing for n in (0, own)]) if any(missing) else x


def strided(x: Tensor) -> Tensor:
    """x, with neighbours along its last axis neighbours in memory."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def structure(**fields: type) -> type[ctypes.Structure]:
    """A C structure of these fields, in their order."""
    return type("Structure", (ctypes.Structure,), {"_fields_": list(fields.items())})


def pointer(x: Tensor | None) -> int | None:
    """Where x begins."""
    return None if x is None else x.data_ptr()


def places(names: str, tensors: Iterable[Tensor]) -> dict[str, object]:
    """Fields of a structure for tensors [B, T, heads, size] of one-letter names.

    Where each begins, and as `_at` the strides of its row, token and head, in numbers.
    """
    each = list(zip(names, tensors, strict=True))
    return {n: pointer(x) for n, x in each} | {f"{n}_at": Strides(*x.stride()[:3]) for n, x in each}


def run(name: str, *arguments: ctypes.Structure | Tensor) -> None:
    """Call a function of the library, its input first, on as many threads as torch uses.

    What the threads work on is a tensor, so that whoever counts memory counts it too.
    """
    if _graph_alone.get():
        return
    library, threads = build.library(), torch.get_num_threads()
    given = [
        ctypes.byref(x) if isinstance(x, ctypes.Structure) else ctypes.c_void_p(pointer(x))
        for x in arguments
    ]
    needs = getattr(library, f"{name}_scratch")
    needs.restype = ctypes.c_long
    scratch = torch.empty(threads, needs(given[0]))
    getattr(library, name)(*given, ctypes.c_void_p(pointer(scratch)), ctypes.c_int(threads))
