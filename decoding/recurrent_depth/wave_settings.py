"""Everything that defines a run of the diffusion-forcing sampler, checked."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from linearize.errors import UsageError, suggest

from .freezing import RULES
from .noise import MIXINGS, SCHEDULES
from .request import Compat, check_compat


@dataclass(frozen=True)
class WaveSettings:
    """Parameters of arXiv 2510.14961, with the paper's letters. One step = one pass of the wave.

    - `inner_recurrence` r': recurrences per step; `num_steps` r: recurrences of the prompt, and the
      most that a token gets (None: the model's own number).
    - `freeze`: a row of `freezing.RULES`; `exit_threshold` epsilon: of its latent rules.
    - `headway` H: positions that enter per step; `max_wavefront` W: positions at once, 0 = any.
    - `noise` beta, `noise_schedule`, `noise_mixing`: see `noise`.
    - `momentum` eta: share of the previous step's input embedding that is kept.
    - `init_scale` alpha: of the states that positions start from; 0 is zeros.
    - `continuous_compute`: new positions start from the newest states instead.
    - `cache_budget`: recurrences whose keys and values are kept; None keeps all.
    - `max_steps`: steps at most, None = as many as it takes.
    - `prefill`: run the prompt first; False puts it into the wave (`compat` only).
    - `head_start`: beside prompts of at most so many tokens the wave begins while they are still at
      work; 0 = never.
    - `verify`, `verify_every`: check drafts against plain autoregression, so many at a time.
    - `compat`: "reference" does what the released code does.
    - `trace`: keep what every step did.

    Raises `UsageError` for a value out of range or values that do not fit together.
    """

    inner_recurrence: int = 4
    num_steps: int | None = None
    freeze: str = "latent-diff"
    exit_threshold: float = 0.03
    headway: int = 1
    max_wavefront: int = 128
    noise: float = 0.0
    noise_schedule: str = "linear"
    noise_mixing: str = "linear"
    momentum: float = 0.1
    init_scale: float = 0.0
    continuous_compute: bool = False
    cache_budget: Any = 1
    max_steps: int | None = None
    prefill: bool = True
    head_start: int = 256
    verify: bool = False
    verify_every: int = 32
    compat: Compat = None
    trace: bool = False

    def __post_init__(self) -> None:
        for name in ("inner_recurrence", "headway", "verify_every"):
            _at_least(name, getattr(self, name), 1)
        if self.num_steps is not None:
            _at_least("num_steps", self.num_steps, 1)
        _at_least("max_wavefront", self.max_wavefront, 0)
        _at_least("head_start", self.head_start, 0)
        if 0 < self.max_wavefront < self.headway:
            raise UsageError(
                f"max_wavefront={self.max_wavefront} cannot hold headway={self.headway} new "
                "positions; raise it, or 0 for no limit"
            )
        if self.max_steps is not None:
            _at_least("max_steps", self.max_steps, 1)
        _number("exit_threshold", self.exit_threshold, 0, math.inf, "distance between states")
        _number("noise", self.noise, 0, 1, "share of the state; 0 is off")
        _number("momentum", self.momentum, 0, 1, "share of the old embedding; 0 is off")
        if self.momentum == 1:
            raise UsageError("momentum=1 would never take in a new token; choose less, such as 0.1")
        _number("init_scale", self.init_scale, 0, math.inf, "scale of the states; 0 is zeros")
        _one_of("freeze", self.freeze, RULES)
        _one_of("noise_schedule", self.noise_schedule, SCHEDULES)
        _one_of("noise_mixing", self.noise_mixing, MIXINGS)
        self._check_company(check_compat(self.compat))

    def _check_company(self, reference: bool) -> None:
        if self.verify and reference:
            raise UsageError("verify=True is ours: the released code cannot do it; drop compat")
        if self.verify and self.cache_budget not in (1, None):
            raise UsageError(
                f"cache_budget={self.cache_budget!r} with verify=True: plain autoregression keeps "
                "all recurrences, and so does the check; leave it out"
            )
        if self.verify and (self.init_scale or self.noise):
            raise UsageError(
                "verify=True compares with autoregression from zero states: leave out init_scale "
                "and noise"
            )
        if not self.prefill and not reference:
            raise UsageError("prefill=False is the released code's: add compat='reference'")

    @property
    def draws(self) -> bool:
        """Whether states are random."""
        return self.init_scale > 0


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UsageError(f"{name}={value!r} must be a whole number, at least {least}")


def _number(name: str, value: Any, low: float, high: float, what: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise UsageError(f"{name}={value!r} must be from {low:g} to {high:g} ({what})")


def _one_of(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise UsageError(f"there is no {name} '{value}'{suggest(str(value), known)}")
