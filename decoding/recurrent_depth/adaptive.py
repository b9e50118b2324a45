"""Adaptive decoding: each token stops thinking when a criterion says it has thought enough.

Source: Geiping et al., arXiv 2502.05171, section 6.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel, require_looped

from .depth import Depth
from .exits import Criterion, resolve
from .request import Compat, Request, Run, check_compat, recurrences
from .tokens import Thought, token_by_token


@torch.no_grad()
def adaptive(
    model: LoopedModel,
    request: Request,
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
    seeds: Sequence[int] | None = None,
) -> Run:
    """Continue each row of a request, with as many recurrences per token as it needs.

    - `num_steps`: recurrences at most; None: the model's own number.
    - `criterion`, `exit_threshold`: a row of `exits.EXITS`, and the value at which it ends; "auto":
      the released one.
    - `min_steps`, `check_every`: the criterion looks after `min_steps` recurrences (at least one)
      and then after every `check_every`. On states it measures what the last recurrence changed;
      on logits what changed since it looked last, so that its first look never exits.
    - `exit_in_prefill`: the prompt's tokens, together, may exit too.
    - `cache_budget`: recurrences that the cache keeps, see the model's `new_cache`; None keeps
      all, and a token that exited early is seen at its deepest recurrence.
    - `init_scale`: of the random states that tokens start from, drawn with `seeds`, one per row;
      0: zeros.
    - `continuous_compute`: a token starts from the state of the token before it.
    - `compat`: "reference": the looks of the released code. The first is after `min_steps` + 1
      recurrences and compares with the initial state, a uniform distribution or an entropy of 100
      nats; the others compare with the last look. One row only.

    Rows exit on their own: what a row says does not depend on the others. Raises `UsageError` for a
    model that is not looped and for values out of range, `CheckError` for logits without a usable
    token.
    """
    model = require_looped(model, needed_by="the sampler 'adaptive'", goes_back=True)
    steps = recurrences(model.loop, num_steps)
    chosen, at = resolve(criterion, exit_threshold)
    if not 0 <= min_steps < steps:
        raise UsageError(
            f"min_steps={min_steps} is out of range: 0 to {steps - 1}, below num_steps"
        )
    if check_every < 1:
        raise UsageError(f"check_every={check_every} is below 1")
    reference = check_compat(compat)
    if reference and len(request.input_ids) > 1:
        raise UsageError(f"compat='reference' runs one row at a time, not {len(request.input_ids)}")
    depth = Depth(
        model, request.seeded(seeds), sharing=cache_budget, init_scale=init_scale, ahead=0
    )
    think = _Thinker(chosen, at, steps, min_steps, check_every, exit_in_prefill, reference)
    follow = (lambda z: z) if continuous_compute else None
    return token_by_token(depth, request, think, follow=follow)


@dataclass(frozen=True)
class _Thinker:
    criterion: Criterion
    threshold: float
    num_steps: int
    min_steps: int
    check_every: int
    exit_in_prefill: bool
    reference: bool

    def __call__(self, depth: Depth, z: Tensor, e: Tensor, where: Tensor) -> Thought:
        may_exit = self.exit_in_prefill or where.shape[1] == 1
        real = (where >= 0).to(z.device)
        active = torch.ones(len(z), dtype=torch.bool)
        steps = [self.num_steps] * len(z)
        values: list[list[float]] = [[] for _ in steps]
        on_state = self.criterion.reads == "state"
        kept = z if on_state else None
        logits = None  # of each row's last look, where the criterion reads them
        for count in range(1, self.num_steps + 1):
            if on_state and not self.reference:
                kept = z
            z = _where(active, depth.core(z, e, count - 1), z)
            fresh = may_exit and self._looks(count)
            if not fresh:
                continue
            if not on_state:
                new = depth.decode(z)[:, -1]
                if logits is None and self.reference and self.criterion.released:
                    kept = self.criterion.released(new)
                logits = new if logits is None else _where(active, new, logits)
            value, kept = self.criterion.look(z if on_state else logits, kept, real)
            for row, v in enumerate(value.tolist()):
                if active[row]:
                    values[row].append(v)
                    if self.criterion.ends(v, self.threshold):
                        steps[row] = count
            before, active = active, active & (torch.tensor(steps) != count)
            if not active.any():
                break
            if not active.equal(before):  # rows that exited write nothing any more
                depth.at(where.masked_fill(~active[:, None], -1))
        if on_state or logits is None:
            depth.at(where)
            logits = depth.decode(z)[:, -1]
        elif active.any() and not fresh:
            logits = _where(active, depth.decode(z)[:, -1], logits)
        return Thought(z, logits, steps, values)

    def _looks(self, count: int) -> bool:
        """Whether the criterion looks after recurrence `count`."""
        if self.reference:
            return count > self.min_steps and (count - 1) % self.check_every == 0
        late = count - self.min_steps
        return late >= 0 and late % self.check_every == 0


def _where(active: Tensor, new: Tensor, old: Tensor) -> Tensor:
    """`new` in active rows, `old` in the others."""
    if active.all():
        return new
    return torch.where(active.to(new.device).view(-1, *[1] * (new.ndim - 1)), new, old)
