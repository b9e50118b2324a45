"""One token of every row at a time: the loop under plain and adaptive decoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .depth import Depth
from .request import Request, Run


@dataclass(frozen=True)
class Thought:
    """What the recurrences over some tokens came to.

    - `state` [B, W, h]; `logits` [B, V] of each row's last token.
    - `steps` [B]: recurrences of each row; `values` [B, n]: what was measured on the way.
    """

    state: Tensor
    logits: Tensor
    steps: list[int]
    values: list[list[float]] = field(default_factory=list)


# (passes, initial states z [B, W, h], e [B, W, h], where [B, W] on the CPU) -> Thought
Think = Callable[[Depth, Tensor, Tensor, Tensor], Thought]


def token_by_token(
    depth: Depth, request: Request, think: Think, *, follow: Callable[[Tensor], Tensor] | None
) -> Run:
    """Generate with `think` as the recurrence.

    - `follow`: state [B, 1, h] of a token -> initial state of the next; None: fresh states.
    """
    ids, where = request.input_ids, request.where
    B = len(ids)
    spent = depth.spent
    spent.steps, spent.exit_values = [[] for _ in range(B)], [[] for _ in range(B)]
    new, z = ids, depth.initial(where)
    for count in range(1, request.max_new_tokens + 1):
        depth.at(where)
        thought = think(depth, z, depth.embed(new), where)
        for row, steps in zip(depth.rows, thought.steps, strict=True):
            spent.steps[row].append(steps)
        for row, values in zip(depth.rows, thought.values, strict=bool(thought.values)):
            spent.exit_values[row].append(values)
        tokens = _choose(request, ids, thought.logits, depth.rows)
        ids = torch.cat([ids, tokens[:, None]], 1)
        done = _ended(request, ids, tokens)
        stay = [not done[row] for row in depth.rows]
        if count == request.max_new_tokens or not any(stay):
            break
        depth.keep(stay)
        here = torch.tensor(stay)
        new = tokens[depth.rows][:, None]
        where = where[here, -1:] + 1
        if follow is None:
            z = depth.initial(where)
        else:
            z = follow(thought.state[here.to(ids.device), -1:])
    return Run(ids, spent)


def _choose(request: Request, ids: Tensor, logits: Tensor, rows: list[int]) -> Tensor:
    """[B] the next token of `rows`, whose logits are [len(rows), V]; padding for the others."""
    index = torch.tensor(rows, device=logits.device)
    everyone = logits.new_zeros(len(ids), logits.shape[-1]).index_copy(0, index, logits)
    scores = request.scores(ids, everyone)
    if request.generators is None:
        chosen = scores[index].argmax(-1)
    else:
        probs = request.probs(scores)
        chosen = torch.tensor([request.draw(row, probs[row]) for row in rows])
    tokens = torch.full((len(ids),), request.pad_token_id, device=ids.device)
    return tokens.index_copy(0, index.to(ids.device), chosen.to(ids.device))


def _ended(request: Request, ids: Tensor, tokens: Tensor) -> list[bool]:
    """[B] whether each row ends with its newest token."""
    done = [token in request.eos for token in tokens.tolist()]
    if request.stopping_criteria is not None:
        told = request.stopping_criteria(ids, None)
        done = [a or b for a, b in zip(done, told.tolist(), strict=True)]
    return done
