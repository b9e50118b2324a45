"""What teacher and student make of the same input in each converted layer's attention.

The teacher's pass is recorded on its way through the layers; the student's attentions then read
what the teacher's read, so that each layer is compared by itself, whatever the others do.
Source: LoLCATs (arXiv 2410.10254), attention transfer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..liger.attention import LigerAttention


@dataclass(frozen=True)
class Call:
    """One converted attention in the teacher's pass: what it was called with, what it gave."""

    attention: LigerAttention
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Tensor

    def student(self) -> Tensor:
        """[B, T, E]: the converted layer's output for the teacher's input, with gradient."""
        kwargs = self.kwargs | {"layout": replace(self.kwargs["layout"], mode="liger")}
        # not the module itself, whose hooks have done their part already
        return self.attention.forward(*self.args, **kwargs)[0]


@contextlib.contextmanager
def recorded(model: nn.Module) -> Iterator[list[Call]]:
    """The calls of all converted attentions in the block, in order."""
    calls: list[Call] = []

    def record(module: LigerAttention, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        calls.append(Call(module, args, kwargs, output[0]))

    attentions = [m for m in model.modules() if isinstance(m, LigerAttention)]
    hooks = [m.register_forward_hook(record, with_kwargs=True) for m in attentions]
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()
