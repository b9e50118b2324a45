"""Does a looped model keep the promises of the interface? For those who plug in their own."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import CheckError, UsageError
from .interface import LoopedModel, is_looped


@torch.no_grad()
def check_interface(
    model: LoopedModel, ids: Tensor, *, recurrences: int = 4, atol: float = 1e-4
) -> None:
    """Run the promises that samplers rely on, all from zero states.

    - `ids`: [1, T] tokens, T at least 4.
    - `recurrences`: of every pass; `atol`: on logits.

    Tokens in one pass, split over passes, after a trim (unless the model is stateful), and in rows
    of different length must give the same logits; logits must not depend on later tokens; and a
    model that says it injects its input must. Raises `CheckError` naming the first promise that is
    broken, `UsageError` if there is no interface or too few tokens.
    """
    if not is_looped(model):
        raise UsageError(f"{type(model).__name__} does not offer the looped interface")
    if ids.ndim != 2 or len(ids) != 1 or ids.shape[1] < 4:
        raise UsageError(f"ids {tuple(ids.shape)}: give one row of at least 4 tokens")
    T, half = ids.shape[1], ids.shape[1] // 2
    at = torch.arange(T)[None]

    def run(tokens: Tensor, positions: Tensor, cache: object) -> Tensor:
        tokens, positions = tokens.contiguous(), positions.contiguous()
        e = model.embed(tokens, positions, cache)
        z = model.initial_state(tokens.shape, scale=0)
        for step in range(recurrences):
            z = model.core_step(z, e, positions, cache, step)
        return model.decode(z, positions, cache)

    def same(a: Tensor, b: Tensor, promise: str) -> None:
        worst = (a - b).abs().max().item()
        if not worst <= atol:
            raise CheckError(f"{promise}: logits differ by {worst:.2g}, more than {atol:g}")

    cache = model.new_cache()
    whole = run(ids, at, cache)
    if cache.lengths.tolist() != [T]:
        raise CheckError(f"embed adds tokens: cache.lengths is {cache.lengths}, not [{T}]")
    if not model.loop.stateful:
        model.trim(cache, half)
        if cache.lengths.tolist() != [half]:
            raise CheckError(f"trim forgets tokens: cache.lengths is {cache.lengths}, not [{half}]")
        same(run(ids[:, half:], at[:, half:], cache), whole[:, half:], "after a trim")
        run(ids[:, half:].flip(1), at[:, half:], cache)
        same(run(ids[:, half:], at[:, half:], cache), whole[:, half:], "tokens given again")

    cache = model.new_cache()
    parts = [run(ids[:, i : i + 1], at[:, i : i + 1], cache) for i in range(T)]
    same(torch.cat(parts, 1), whole, "token by token")
    same(run(ids[:, :half], at[:, :half], None), whole[:, :half], "nothing depends on later tokens")

    rows, positions = ids.repeat(2, 1), at.repeat(2, 1)
    positions[1, half:] = -1
    cache = model.new_cache()
    both = run(rows, positions, cache)
    same(both[:1], whole, "beside a shorter row")
    same(both[1:, :half], whole[:, :half], "in a shorter row")
    cache.select(torch.tensor([1]))
    same(run(ids[:, half:], at[:, half:], cache), whole[:, half:], "a selected row continues")

    if model.loop.injects_input:
        e = model.embed(ids, at, None)
        z = model.initial_state(ids.shape, scale=0)
        if torch.equal(model.core_step(z, e, at, None), model.core_step(z, 2 * e + 1, at, None)):
            raise CheckError("loop.injects_input is True, but the core ignores its input e")
