"""Plain decoding: every token gets the same number of recurrences."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel, require_looped

from .depth import Depth
from .request import Compat, Request, Run, check_compat, recurrences
from .tokens import Thought, token_by_token


@torch.no_grad()
def autoregressive(
    model: LoopedModel,
    request: Request,
    *,
    num_steps: int | None = None,
    cache_budget: Any = None,
    init_scale: float = 0.0,
    continuous_compute: bool = False,
    compat: Compat = None,
    seeds: Sequence[int] | None = None,
) -> Run:
    """Continue each row of a request token by token.

    - `num_steps`: recurrences of every token; None: the model's own number.
    - `cache_budget`: recurrences that the cache keeps, see the model's `new_cache`; None keeps all.
    - `init_scale`: of the random states that tokens start from, drawn with `seeds`, one per row;
      0: zeros.
    - `continuous_compute`: a token starts from the state of the token before it.
    - `compat`: "reference" normalises that state first, as the released code does.

    Raises `UsageError` for a model that is not looped and for values out of range, `CheckError`
    for logits without a usable token.
    """
    model = require_looped(model, needed_by="the sampler 'autoregressive'")
    steps = recurrences(model.loop, num_steps)
    reference, follow = check_compat(compat), None
    if continuous_compute:
        follow = _final_norm(model) if reference else lambda z: z

    def think(depth: Depth, z: Tensor, e: Tensor, where: Tensor) -> Thought:
        for step in range(steps):
            z = depth.core(z, e, step)
        return Thought(z, depth.decode(z)[:, -1], [steps] * len(z))

    depth = Depth(
        model, request.seeded(seeds), sharing=cache_budget, init_scale=init_scale, ahead=0
    )
    return token_by_token(depth, request, think, follow=follow)


def _final_norm(model: Any) -> Any:
    norm = getattr(getattr(model, "transformer", {}), "ln_f", None)
    if norm is None:
        raise UsageError(
            "compat='reference' with continuous_compute needs the architecture of the released "
            "code (Huginn); leave compat out"
        )
    return norm
