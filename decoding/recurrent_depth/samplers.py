"""Rows of `sampling.SAMPLERS` that give a looped model's tokens one recurrence after the other.

Their options are those of the loops they run and, for drawing, of `sampling.sample`; temperature 0
takes the most likely token. Each says what it is in its own file.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

from ..sampling import Sampler
from .adaptive import adaptive as think_adaptively
from .autoregressive import autoregressive as think_alike
from .exits import resolve
from .loop import register, sampler
from .request import Compat
from .speculative import self_speculative as speculate


@register("autoregressive")
def autoregressive(
    *,
    num_steps: int | None = None,
    cache_budget: Any = None,
    init_scale: float = 0.0,
    continuous_compute: bool = False,
    compat: Compat = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Sampler:
    """The same number of recurrences for every token; see `autoregressive.autoregressive`."""
    run = partial(
        think_alike,
        num_steps=num_steps,
        cache_budget=cache_budget,
        init_scale=init_scale,
        continuous_compute=continuous_compute,
        compat=compat,
    )
    return sampler(
        "autoregressive",
        lambda seeds: partial(run, seeds=seeds),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        draws=init_scale > 0,
    )


@register("adaptive")
def adaptive(
    *,
    num_steps: int | None = None,
    criterion: str = "latent-diff",
    exit_threshold: float | Literal["auto"] = "auto",
    min_steps: int = 0,
    check_every: int = 1,
    exit_in_prefill: bool = True,
    cache_budget: Any = None,
    init_scale: float = 0.0,
    continuous_compute: bool = False,
    compat: Compat = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Sampler:
    """As many recurrences as each token needs; see `adaptive.adaptive`."""
    resolve(criterion, exit_threshold)
    run = partial(
        think_adaptively,
        num_steps=num_steps,
        criterion=criterion,
        exit_threshold=exit_threshold,
        min_steps=min_steps,
        check_every=check_every,
        exit_in_prefill=exit_in_prefill,
        cache_budget=cache_budget,
        init_scale=init_scale,
        continuous_compute=continuous_compute,
        compat=compat,
    )
    return sampler(
        "adaptive",
        lambda seeds: partial(run, seeds=seeds),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        draws=init_scale > 0,
    )


@register("self-speculative")
def self_speculative(
    *,
    num_steps: int | None = None,
    draft_steps: int = 4,
    lookahead: int = 4,
    accept_threshold: float = 1.0,
    cache_budget: Any = None,
    init_scale: float = 0.0,
    compat: Compat = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Sampler:
    """Drafts with few recurrences, verified with many; see `speculative.self_speculative`."""
    run = partial(
        speculate,
        num_steps=num_steps,
        draft_steps=draft_steps,
        lookahead=lookahead,
        accept_threshold=accept_threshold,
        cache_budget=cache_budget,
        init_scale=init_scale,
        compat=compat,
    )
    return sampler(
        "self-speculative",
        lambda seeds: partial(run, seeds=seeds),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        draws=init_scale > 0,
    )
