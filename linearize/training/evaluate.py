"""Loss on held-out rows, per token: what every number in a report is made of."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import processes
from .packing import IGNORED, Rows
from .sharding import is_sharded

_INPUTS = ("input_ids", "attention_mask", "position_ids", "prefix_lengths")


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch to eval mode and back: only modules that were in training mode are touched."""
    switched = [module for module in model.modules() if module.training]
    for module in switched:
        module.training = False
    try:
        yield
    finally:
        for module in switched:
            module.training = True


def model_inputs(batch: dict[str, Tensor]) -> dict[str, Tensor | bool]:
    """Arguments of a forward pass: `input_ids`, what else rows tell of themselves, no cache."""
    return {name: batch[name] for name in _INPUTS if name in batch} | {"use_cache": False}


@torch.no_grad()
def token_losses(
    model: nn.Module,
    rows: Rows,
    *,
    batch_size: int,
    max_tokens: int | None = None,
    num_steps: int | None = None,
    shared: bool = False,
) -> Tensor:
    """Cross entropy of every target token of the first rows, in order.

    Args:
        model: a causal LM; runs where its first parameter lies, in eval mode, restored after.
        rows: packed rows of T tokens.
        batch_size: rows per forward pass.
        max_tokens: stop after the first row that brings the tokens read to this number.
        num_steps: recurrences of a looped model; None = the number in its config.
        shared: every process of the run calls this, computes its share of the batches, and gets
            the losses of all.

    Returns:
        `[N, T]` float32 on CPU, in nats; nan where there is no target.
    """
    count = len(rows)
    if max_tokens is not None:
        count = min(count, -(-max_tokens // rows.seq_len))
    device = next(model.parameters()).device
    depth = {} if num_steps is None else {"num_steps": num_steps}
    own, of = (processes.rank(), processes.count()) if shared else (0, 1)
    found = torch.zeros(count, rows.seq_len)
    together = is_sharded(model)
    with evaluating(model), processes.connected():
        for turn in range(math.ceil(count / (of * batch_size))):
            start = (turn * of + own) * batch_size
            chosen = range(start, min(start + batch_size, count))
            if not chosen and not together:
                break
            # A sharded model runs in all processes or in none: also in one without a batch left.
            batch = rows.batch(chosen or [0])
            batch = {name: tensor.to(device) for name, tensor in batch.items()}
            logits = model(**model_inputs(batch), **depth).logits
            # One row at a time: a float32 copy of all logits would double the peak.
            for row, scores, targets in zip(chosen, logits, batch["targets"], strict=bool(chosen)):
                losses = F.cross_entropy(
                    scores.float(), targets, ignore_index=IGNORED, reduction="none"
                )
                found[row] = losses.masked_fill(targets == IGNORED, torch.nan)
    return processes.summed(found) if shared else found


def mean_loss(
    model: nn.Module, rows: Rows, *, batch_size: int, max_tokens: int | None = None
) -> tuple[float, int]:
    """Nats per target token, and the number of target tokens; arguments as in `token_losses`."""
    losses = token_losses(model, rows, batch_size=batch_size, max_tokens=max_tokens)
    return losses.double().nanmean().item(), int((~losses.isnan()).sum())


def loss_by_recurrences(
    model: nn.Module,
    rows: Rows,
    *,
    batch_size: int,
    recurrences: Sequence[int] = (1, 2, 4, 8, 16, 32),
    max_tokens: int | None = None,
) -> dict[int, float]:
    """Nats per target token of a looped model at each number of recurrences."""
    found = {}
    for count in recurrences:
        losses = token_losses(
            model, rows, batch_size=batch_size, max_tokens=max_tokens, num_steps=count
        )
        found[count] = losses.double().nanmean().item()
    return found


def loss_by_position(
    losses: Tensor, edges: Sequence[int], *, rows: Rows | None = None
) -> list[float]:
    """Mean loss of the tokens whose position lies in `[edges[i], edges[i + 1])`.

    Args:
        losses: `[N, T]` from `token_losses`.
        edges: ascending, E + 1 numbers for E bins.
        rows: the rows behind `losses`; position is then counted inside each document, as their
            `position_ids` say. Without, or where rows have none, it is the column.

    Returns:
        E means in nats; nan for a bin without tokens.
    """
    batch = {} if rows is None else rows.batch(range(len(losses)))
    positions = batch.get("position_ids", torch.arange(losses.shape[1]).expand_as(losses))
    inside = [(positions >= low) & (positions < high) for low, high in pairwise(edges)]
    return [losses[chosen].double().nanmean().item() for chosen in inside]
