"""Rows of `sampling.SAMPLERS` that give a looped model's tokens one recurrence after the other.

A row's options are its loop's own and, for drawing, those of `sampling.sample`; temperature 0 takes
the most likely token. Each loop says what its options are in its own file.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import Parameter, Signature, signature
from typing import Any

from ..sampling import Sampler
from .adaptive import adaptive
from .autoregressive import autoregressive
from .exits import resolve
from .loop import register, sampler
from .request import Run
from .speculative import self_speculative

_DRAWING = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical": 1.0}


def _row(name: str, loop: Callable[..., Run], check: Callable[..., Any] | None = None) -> None:
    """Makes `loop` a row. `check` looks at the options it names before a model is loaded."""
    own = signature(loop).parameters.values()
    own = [p for p in own if p.kind is Parameter.KEYWORD_ONLY and p.name != "seeds"]
    drawing = [Parameter(n, Parameter.KEYWORD_ONLY, default=v) for n, v in _DRAWING.items()]
    options = Signature([*own, *drawing])

    def factory(**given: Any) -> Sampler:
        bound = options.bind(**given)
        bound.apply_defaults()
        chosen = bound.arguments
        if check is not None:
            check(**{n: chosen[n] for n in signature(check).parameters})
        cuts = {n: chosen.pop(n) for n in _DRAWING}
        return sampler(
            name,
            lambda seeds: partial(loop, **chosen, seeds=seeds),
            **cuts,
            draws=chosen["init_scale"] > 0,
        )

    factory.__signature__, factory.__doc__ = options, loop.__doc__
    register(name)(factory)


_row("autoregressive", autoregressive)
_row("adaptive", adaptive, lambda criterion, exit_threshold: resolve(criterion, exit_threshold))
_row("self-speculative", self_speculative)
