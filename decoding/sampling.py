"""How the next token is chosen: one registry, one row per sampler.

- A sampler is a factory: it takes its own options by keyword, validates them, and returns a
  function from the seeds of a batch (one per prompt) to keyword arguments of `model.generate`:
  a logits processor, or a whole loop as `custom_generate`. So anything transformers can run can be
  a row of `SAMPLERS`, and the rest of the package never needs to know which one it is.
- A processor that draws leaves a single token possible; transformers then takes it greedily. The
  draw uses one generator per prompt, so a prompt's text does not depend on its neighbours.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from linearize.errors import UsageError, suggest

Sampler = Callable[[Sequence[int]], dict[str, Any]]


def greedy() -> Sampler:
    """The most likely token every time."""
    return lambda seeds: {}


def sample(
    *, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0
) -> Sampler:
    """Draw from the softmax of the logits, divided by `temperature` and cut, in this order.

    - `temperature`: above 0; below 1 sharpens.
    - `top_k`: keep the k most likely tokens; 0 keeps all.
    - `top_p`: keep the fewest tokens whose probability reaches p, in (0, 1]; 1 keeps all.
    - `min_p`: keep tokens with at least this share of the top token's probability, in [0, 1).

    The cuts are transformers' own warpers. Raises `UsageError` for a value out of range.
    """
    if not temperature > 0:
        raise UsageError(
            f"temperature={temperature:g} is not above 0; "
            "for the most likely token every time choose the sampler 'greedy'"
        )
    if top_k < 0:
        raise UsageError(f"top_k={top_k} is negative; 0 keeps all tokens")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p:g} is outside (0, 1]; 1 keeps all tokens")
    if not 0 <= min_p < 1:
        raise UsageError(f"min_p={min_p:g} is outside [0, 1); 0 keeps all tokens")
    warpers = LogitsProcessorList()
    if temperature != 1:
        warpers.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        warpers.append(MinPLogitsWarper(float(min_p)))
    return lambda seeds: {"logits_processor": LogitsProcessorList([_Draw(warpers, seeds)])}


SAMPLERS: dict[str, Callable[..., Sampler]] = {"greedy": greedy, "sample": sample}


def make(name: str, **options: Any) -> Sampler:
    """The sampler called `name`. Raises `UsageError` for an unknown name, option or value."""
    if name not in SAMPLERS:
        raise UsageError(f"there is no sampler '{name}'{suggest(name, SAMPLERS)}")
    known = inspect.signature(SAMPLERS[name]).parameters
    for option in options:
        if option not in known:
            owners = [n for n, f in SAMPLERS.items() if option in inspect.signature(f).parameters]
            hint = f"; it belongs to '{owners[0]}'" if owners else suggest(option, known)
            raise UsageError(f"the sampler '{name}' has no option '{option}'{hint}")
    return SAMPLERS[name](**options)


def pick(probs: Tensor, u: Tensor) -> Tensor:
    """Inverse-CDF draw: the first token whose cumulated probability exceeds `u`.

    `probs` [B, V] non-negative, need not sum to 1; `u` [B] in [0, 1). Returns int64 [B]; never a
    token of probability 0. Computed in float64, so that rounding does not move the draw.
    """
    if probs.device.type == "mps":  # has no float64
        return pick(probs.cpu(), u.cpu()).to(probs.device)
    cdf = probs.double().cumsum(-1)
    target = u.to(cdf)[:, None] * cdf[:, -1:]
    return torch.searchsorted(cdf, target, right=True)[:, 0]


class _Draw(LogitsProcessor):
    """Warp, draw one token per row, and make every other token impossible."""

    def __init__(self, warpers: LogitsProcessorList, seeds: Sequence[int]) -> None:
        self.warpers = warpers
        # On the CPU, whatever the model's device: the same seed means the same numbers everywhere.
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = self.warpers(input_ids, scores.float())
        u = torch.stack([torch.rand((), generator=g, dtype=torch.float64) for g in self.generators])
        token = pick(scores.softmax(-1), u.to(scores.device))
        return torch.full_like(scores, -torch.inf).scatter_(1, token[:, None], 0.0)
