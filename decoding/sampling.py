"""How the next token is chosen: one registry, one row per sampler.

- A row is a factory: it takes its own options by keyword, validates them, and returns a `Sampler`,
  which turns the seeds of a batch (one per prompt) into keyword arguments of `model.generate`: a
  logits processor, or a whole loop as `custom_generate`. So anything transformers can run can be a
  row of `SAMPLERS`, and the rest of the package never needs to know which one it is.
- A processor that draws leaves a single token possible; transformers then takes it greedily. The
  draw uses one generator per prompt, so a prompt's text does not depend on its neighbours.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
    TypicalLogitsWarper,
)

from linearize.errors import UsageError, suggest
from linearize.recurrent_depth.interface import is_looped


@dataclass(frozen=True)
class Sampler:
    """What a row of `SAMPLERS` makes.

    - `arguments`: seeds of a batch -> keyword arguments of `model.generate`.
    - `draws`: another seed gives another text.
    - `beams`: rows of the model's batch per prompt; with more than one the text is known only when
      the search ends.
    """

    arguments: Callable[[Sequence[int]], dict[str, Any]]
    draws: bool = False
    beams: int = 1

    def check_returns(self, count: int) -> None:
        """Whether `count` different texts per prompt can be had. Raises `UsageError` if not."""
        if count < 1:
            raise UsageError(f"num_return={count} is below 1")
        if self.beams > 1 and count > self.beams:
            raise UsageError(
                f"num_return={count} is more than num_beams={self.beams}; a search returns at most "
                "its beams"
            )
        if count > 1 and self.beams == 1 and not self.draws:
            raise UsageError(
                f"num_return={count}: without drawing or beams all of them would be the same text; "
                "choose the sampler 'sample' or 'beam'"
            )


def greedy() -> Sampler:
    """The most likely token every time."""
    return Sampler(lambda seeds: {})


def sample(
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Sampler:
    """Draw from the softmax of the logits, divided by `temperature` and cut, in this order.

    - `temperature`: above 0; below 1 sharpens.
    - `top_k`: keep the k most likely tokens; 0 keeps all.
    - `top_p`: keep the fewest tokens whose probability reaches p, in (0, 1]; 1 keeps all.
    - `min_p`: keep tokens with at least this share of the top token's probability, in [0, 1).
    - `typical`: keep the tokens whose surprise is nearest to the expected one, up to this
      probability mass, in (0, 1]; 1 keeps all (Meister et al., arXiv 2202.00666).

    The cuts are transformers' own warpers. Raises `UsageError` for a value out of range.
    """
    if not temperature > 0:
        raise UsageError(
            f"temperature={temperature:g} is not above 0; "
            "for the most likely token every time choose the sampler 'greedy'"
        )
    cuts = warpers(temperature, top_k, top_p, min_p, typical)
    return Sampler(
        lambda seeds: {"logits_processor": LogitsProcessorList([_Draw(cuts, seeds)])}, draws=True
    )


def warpers(
    temperature: float, top_k: int, top_p: float, min_p: float, typical: float
) -> LogitsProcessorList:
    """What the options of `sample` do to the logits before a token is drawn; they read no ids.

    Raises `UsageError` for a value out of range, and for cuts at temperature 0 (nothing is drawn).
    """
    if top_k < 0:
        raise UsageError(f"top_k={top_k} is negative; 0 keeps all tokens")
    if not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p:g} is outside (0, 1]; 1 keeps all tokens")
    if not 0 <= min_p < 1:
        raise UsageError(f"min_p={min_p:g} is outside [0, 1); 0 keeps all tokens")
    if not 0 < typical <= 1:
        raise UsageError(f"typical={typical:g} is outside (0, 1]; 1 keeps all tokens")
    cut = top_k or top_p < 1 or min_p or typical < 1
    if not temperature:
        if cut:
            raise UsageError("nothing is drawn at temperature 0, so nothing is cut: raise it")
        return LogitsProcessorList()
    if not 0 < temperature < math.inf:
        raise UsageError(f"temperature={temperature:g} is not a number from 0 up")
    made = LogitsProcessorList()
    if temperature != 1:
        made.append(TemperatureLogitsWarper(float(temperature)))
    if top_k:
        made.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        made.append(TopPLogitsWarper(float(top_p)))
    if min_p:
        made.append(MinPLogitsWarper(float(min_p)))
    if typical < 1:
        made.append(TypicalLogitsWarper(float(typical)))
    return made


def beam(
    *, num_beams: int = 4, length_penalty: float = 1.0, early_stopping: bool | str = False
) -> Sampler:
    """Beam search, transformers' own: the text with the best mean log probability it finds.

    - `num_beams`: texts kept at every step, at least 2.
    - `length_penalty`: scores are divided by length to this power; above 0 favours long texts.
    - `early_stopping`: True ends with `num_beams` finished texts, False when a better one is
      unlikely, "never" when it is impossible.

    Raises `UsageError` for a value out of range.
    """
    if num_beams < 2:
        raise UsageError(f"num_beams={num_beams} is below 2; for one beam choose 'greedy'")
    if early_stopping not in (True, False, "never"):
        raise UsageError(f"early_stopping={early_stopping!r} is none of true, false and never")
    fixed = {
        "num_beams": num_beams,
        "length_penalty": float(length_penalty),
        "early_stopping": early_stopping,
    }
    return Sampler(lambda seeds: fixed, beams=num_beams)


SAMPLERS: dict[str, Callable[..., Sampler]] = {"greedy": greedy, "sample": sample, "beam": beam}
LOOPED: set[str] = set()  # those that fit looped models only; see recurrent_depth/


def check_model(name: str, model: Any) -> None:
    """Raises `UsageError`, naming samplers that fit, if the one called `name` does not."""
    if name in LOOPED and not is_looped(model):
        others = ", ".join(n for n in SAMPLERS if n not in LOOPED)
        raise UsageError(
            f"the sampler '{name}' runs the recurrences of a looped model, and "
            f"{type(model).__name__} is not one; samplers that fit it: {others}"
        )


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
