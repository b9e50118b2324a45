"""What samplers need of a looped model. Any model with these methods plugs in.

Nothing here imports a model: a third party implements `LoopedModel`, by hand or by deriving from
`looped.LoopedCausalLM`, and checks it with `conformance.check_interface`.

Shapes: B rows (sequences), W tokens of each, h the width of the state, V the vocabulary.
`positions` [B, W] int64 counts the tokens of each row from 0; -1 marks an unused place, which is
computed and ignored. Positions of a row may be given again (the token there is then replaced, and
so is what it left in the cache), but none may be left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..errors import UsageError
from .spec import MAX_RECURRENCES as MAX_RECURRENCES


@dataclass(frozen=True)
class LoopFacts:
    """What does not change: sizes and habits of a looped model.

    - `vocab_size`: V of the logits; `width`: h of the state; `context`: tokens it was trained for.
    - `recurrences`: how often the core is applied when nobody says.
    - `prelude`, `core`, `coda`: layers of each part, for counting work and memory.
    - `injects_input`: the core sees e at every step, so that a state can be corrected when its
      token changes. Without it, a changed token needs a fresh state.
    - `stateful`: layers keep a recurrent state besides keys and values. Then tokens come in order
      and once, all with the same number of recurrences, and nothing is trimmed.
    """

    vocab_size: int
    width: int
    context: int
    recurrences: int
    prelude: int
    core: int
    coda: int
    injects_input: bool = True
    stateful: bool = False


class LoopedCache(Protocol):
    """Keys and values by row and position."""

    lengths: Tensor  # [B] int64 on the CPU: tokens of each row

    def trim(self, length: int | Tensor) -> None:
        """Forget tokens at positions >= length (one number or [B])."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order; a row may be named several times."""

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""


@runtime_checkable
class LoopedModel(Protocol):
    """prelude once, core as often as one likes, coda once; all write their keys and values.

    Pass the same `positions` tensor object to the calls of one pass, and do not change it in
    place: what is derived from it is then computed once.
    """

    @property
    def loop(self) -> LoopFacts:
        """Sizes and habits."""

    def new_cache(self, *, sharing: Any = None, max_length: int | None = None) -> Any:
        """An empty cache. `sharing`: how many recurrences it keeps; None keeps all."""

    def initial_state(
        self,
        shape: tuple[int, ...],
        *,
        scale: float = 1.0,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[*shape, h] states to start from; scale 0 gives zeros and draws nothing."""

    def embed(self, ids: Tensor, positions: Tensor, cache: Any = None) -> Tensor:
        """The prelude: ids [B, W] -> e [B, W, h]. Adds the tokens to the cache."""

    def core_step(
        self, z: Tensor, e: Tensor, positions: Tensor, cache: Any = None, step: int = 0
    ) -> Tensor:
        """One recurrence: z, e [B, W, h] -> z [B, W, h]. `step` counts from 0."""

    def decode(
        self, z: Tensor, positions: Tensor, cache: Any = None, *, logits_to_keep: int = 0
    ) -> Tensor:
        """The coda and the head: z [B, W, h] -> logits [B, W, V] float32.

        Needed once for every token that stays in the cache: later tokens attend to it there.
        `logits_to_keep`: of the last so many tokens only; 0 = all.
        """

    def trim(self, cache: Any, length: int | Tensor) -> None:
        """Forget tokens at positions >= length (one number or [B])."""


_METHODS = ("new_cache", "initial_state", "embed", "core_step", "decode", "trim")


def is_looped(model: Any) -> bool:
    """Whether a model offers the interface."""
    return all(callable(getattr(model, m, None)) for m in _METHODS) and hasattr(model, "loop")


def require_looped(model: Any, *, needed_by: str, goes_back: bool = False) -> LoopedModel:
    """The model itself. Raises `UsageError`, naming what is lacking, if it is not looped.

    - `goes_back`: positions are given again or tokens stop at different recurrences, which is
      refused for a model with recurrent states.
    """
    if is_looped(model):
        if goes_back and model.loop.stateful:
            raise UsageError(
                f"{needed_by} takes tokens back or stops them at different recurrences, and the "
                f"recurrent states of {type(model).__name__} cannot follow; use 'autoregressive' "
                "or any sampler that is not for looped models only"
            )
        return model
    lacking = [m for m in (*_METHODS, "loop") if not hasattr(model, m)]
    raise UsageError(
        f"{needed_by} needs a looped model, and {type(model).__name__} is not one (it lacks "
        f"{', '.join(lacking)}); load a recurrent-depth model such as Huginn-0125, or use a "
        "sampler for any model, such as greedy"
    )
