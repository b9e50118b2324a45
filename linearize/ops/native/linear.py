"""A few rows times the weights of a linear layer, in C, as an operation of torch.

`torch.ops.linearize.linear` is what compiled graphs can call without Python in between.
"""

from __future__ import annotations

import ctypes
import functools
import logging
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from . import build, call

MOST = 8  # rows; linear.c has a form for each number of them
_NAME = "linearize::linear"
_FUNCTIONS = {
    "data": "aoti_torch_get_data_ptr",
    "sizes": "aoti_torch_get_sizes",
    "strides": "aoti_torch_get_strides",
    "empty": "aoti_torch_empty_strided",
    "release": "aoti_torch_delete_tensor_object",
}
_NUMBERS = {"float32": "aoti_torch_dtype_float32", "cpu": "aoti_torch_device_type_cpu"}
_Torch = call.structure(
    **dict.fromkeys(_FUNCTIONS, ctypes.c_void_p), **dict.fromkeys(_NUMBERS, ctypes.c_int32)
)

log = logging.getLogger(__name__)


def takes(x: Tensor, w: Tensor) -> bool:
    """Whether the operation knows the case: at most `MOST` rows, weights as they lie in memory,
    both on the CPU in float32.
    """
    fits = x.ndim == w.ndim == 2 and len(x) <= MOST and x.stride(1) == 1 and w.is_contiguous()
    return fits and call.takes(x, w) and operation() is not None


@functools.cache
def operation() -> Callable[[Tensor, Tensor], Tensor] | None:
    """x [rows, inputs], w [outputs, inputs] -> x w^T [rows, outputs]; no gradients.

    For what `takes` says, and nothing else: it does not check. None where it cannot be had.
    """
    try:
        _register()
    except (build.BuildError, AttributeError, OSError) as error:
        log.info("one-row products run in plain torch: %s", error)
        return None
    return torch.ops.linearize.linear.default


def _register() -> None:
    """Raises `AttributeError` if this torch has no stable interface for operations in C."""
    library, at = build.library(), _torch_library()
    functions = {ours: _address(getattr(at, name)) for ours, name in _FUNCTIONS.items()}
    numbers = {ours: getattr(at, name)() for ours, name in _NUMBERS.items()}
    begin, add = at.aoti_torch_library_init_impl, at.aoti_torch_library_impl
    torch.library.define(_NAME, "(Tensor x, Tensor w) -> Tensor")
    torch.library.register_fake(_NAME, lambda x, w: x.new_empty(len(x), len(w)))
    library.linear_operation_with(ctypes.byref(_Torch(**functions, **numbers)))
    held = ctypes.c_void_p()  # never released: the operation stays as long as the process
    failed = begin(b"linearize", b"CPU", __file__.encode(), 0, ctypes.byref(held))
    failed = failed or add(held, b"linear", ctypes.c_void_p(_address(library.linear_operation)))
    if failed:
        raise AttributeError("torch refused the operation")


def _address(function: ctypes._CFuncPtr) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value


def _torch_library() -> ctypes.CDLL:
    """The library of torch that is loaded already."""
    folder = Path(torch.__file__).parent / "lib"
    found = [x for x in folder.glob("*torch_cpu.*") if x.suffix in (".so", ".dylib", ".dll")]
    return ctypes.CDLL(str(found[0])) if found else ctypes.CDLL(None)
