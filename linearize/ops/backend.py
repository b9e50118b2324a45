"""Which implementation runs each op, decided in one place.

`choose` answers for one call; `use` overrides it (tests, comparisons); `report` says what was
chosen on this machine and why, for `linearize doctor`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch

from ..errors import UsageError, suggest

BACKENDS = {
    "recurrent": "token by token, the definition",
    "chunk": "chunks in parallel, plain torch, any device",
    "native": "chunks in C, compiled for this processor, float32 on the CPU",
    "fla": "Triton kernels of flash-linear-attention, CUDA only",
}
# Below this many tokens a loop over tokens beats building a chunk (docs/speed.md).
STEP_TOKENS = 4

_override: ContextVar[str | None] = ContextVar("linearize_backend", default=None)


@contextlib.contextmanager
def use(backend: str) -> Iterator[None]:
    """Force one backend for every op called with `backend="auto"` inside the block."""
    token = _override.set(_known(backend))
    try:
        yield
    finally:
        _override.reset(token)


def choose(
    backend: str,
    *,
    device: torch.device,
    length: int,
    kernel: bool = True,
    native: Callable[[], bool] = lambda: False,
) -> str:
    """The backend for one call on `length` tokens.

    - `kernel`: whether fla has one for the op.
    - `native`: whether the op's C form takes the tensors; asked only where it matters: the answer
      may take a compiler's time.

    Raises `UsageError` if it cannot run here.
    """
    if backend == "auto" and not torch.compiler.is_compiling():  # tracers cannot read it
        backend = _override.get() or "auto"
    if backend == "auto":
        if kernel and device.type == "cuda" and fla_status()[0]:
            return "fla"
        if length <= STEP_TOKENS:
            return "recurrent"
        return "native" if native() else "chunk"
    if backend == "native" and not native():
        able, why = native_status()
        raise UsageError(
            "backend 'native' cannot run here: "
            + ("it takes float32 on the CPU" if able else why)
            + "; use backend='auto'"
        )
    if backend == "fla" and not kernel:
        raise UsageError("backend 'fla': this op has no kernel here; use backend='auto'")
    if _known(backend) == "fla" and not (device.type == "cuda" and fla_status()[0]):
        reason = fla_status()[1] if device.type == "cuda" else f"the tensors are on {device.type}"
        raise UsageError(f"backend 'fla' cannot run here: {reason}; use backend='auto'")
    return backend


def allows(backend: str) -> bool:
    """Whether an op that finds its own way may take it: not where `use` asks for another."""
    return torch.compiler.is_compiling() or _override.get() in (None, backend)


def native_status() -> tuple[bool, str]:
    """Whether the C forms can run, and the reason."""
    from .native import build

    return build.status()


@functools.cache
def fla_status() -> tuple[bool, str]:
    """Whether fla's kernels can run, and the reason. `import fla` alone proves nothing."""
    if not torch.cuda.is_available():
        return False, "no CUDA device"
    try:
        from fla.ops.gla import chunk_gla  # noqa: F401
    except Exception as error:  # any failure of an optional package means: not available
        return False, f"flash-linear-attention does not import ({error})"
    return True, "CUDA device present and flash-linear-attention imports"


def report() -> list[dict[str, Any]]:
    """One row per op: `op`, `backend`, `why`, `improve` (None when there is nothing to gain)."""
    (ok, why), (built, found) = fla_status(), native_status()
    torch_only = "plain torch, chunks of 64 tokens"
    improve = None
    if not ok and torch.cuda.is_available():
        improve = 'pip install "linearize[fla]"'
    elif not built:
        improve = "a C compiler: several times faster on the CPU"
    elif not ok:
        improve = "a CUDA device; on the CPU this is the fastest path there is"
    return [
        {
            "op": "gla",
            "backend": "fla" if ok else "native" if built else "chunk",
            "why": why if ok else f"{why}; {found if built else f'{torch_only}: {found}'}",
            "improve": improve,
        },
        *(
            {
                "op": op,
                "backend": "chunk",
                "why": f"plain torch on every device, chunks of {size} tokens",
                "improve": None,
            }
            for op, size in (("gsa", 64), ("delta", 32))
        ),
        {
            "op": "window_attention",
            "backend": "native" if built else "scaled_dot_product_attention",
            "why": f"{found}; elsewhere blocks of one window with a band mask: exact and linear",
            "improve": None,
        },
    ]


def _known(backend: str) -> str:
    if backend not in BACKENDS:
        raise UsageError(f"backend={backend!r} is not known{suggest(backend, [*BACKENDS, 'auto'])}")
    return backend
