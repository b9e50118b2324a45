"""Where the right token ranks, and how often a model's first choice is a recent token.

Teacher-forced metrics of unlikelihood training (Welleck et al. 2020, section 5.3) and of DITTO, as
their released scripts count them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from linearize.errors import InputError

from .ngrams import mean

WINDOWS = (16, 32, 128, 512)


def ranking(
    logits: Tensor, targets: Tensor, *, windows: Sequence[int] = WINDOWS
) -> dict[str, float]:
    """Counts over one sequence, to be put together by `aggregate`.

    Args:
        logits: `[T, V]`, scores of each next token; any float type.
        targets: `[T]`, int64, the tokens that came.
        windows: lengths l of the past looked at, in targets.

    Returns:
        - `tokens`: T.
        - `target_rank`: sum over t of the number of tokens scored above the target (0 is best; ties
          count in favour of the target); `median_target_rank`: their lower median.
        - `hits_at_1`, `hits_at_10`: targets of rank below 1 and 10.
        - per l: `repeat_at_1/l`: first choices that occur among the l targets before t;
          `wrong_repeat_at_1/l`: those of them that are not the target; `human_repeat_at_1/l`:
          targets that occur among the l targets before them.

    Raises `InputError` for an empty sequence or shapes that do not belong together.
    """
    if targets.ndim != 1 or logits.shape[:-1] != targets.shape or not len(targets):
        raise InputError(
            f"logits {list(logits.shape)} and targets {list(targets.shape)} are no pair of "
            "[T, V] and [T] with T above 0; give one sequence at a time"
        )
    rank = (logits > logits.gather(1, targets[:, None])).sum(1)
    choice = logits.argmax(1)
    counts: dict[str, float] = {
        "tokens": len(targets),
        "target_rank": int(rank.sum()),
        "median_target_rank": int(rank.median()),
        "hits_at_1": int((rank < 1).sum()),
        "hits_at_10": int((rank < 10).sum()),
    }
    place = torch.arange(len(targets), device=targets.device)
    age = place[:, None] - place  # of the target in the column, seen from the row
    for window in windows:
        recent = (age > 0) & (age <= window)
        repeat = ((choice[:, None] == targets) & recent).any(1)
        human = ((targets[:, None] == targets) & recent).any(1)
        counts[f"repeat_at_1/{window}"] = int(repeat.sum())
        counts[f"wrong_repeat_at_1/{window}"] = int((repeat & (choice != targets)).sum())
        counts[f"human_repeat_at_1/{window}"] = int(human.sum())
    return counts


def aggregate(sequences: Iterable[dict[str, float]]) -> dict[str, float]:
    """Results of `ranking` per token of all sequences: shares in [0, 1], mean rank, and `tokens`.

    `median_target_rank` is the mean of the sequences' medians, as released. Nothing of
    nothing.
    """
    found = list(sequences)
    if not found:
        return {}
    tokens = sum(counts["tokens"] for counts in found)
    totals = {name: sum(counts[name] for counts in found) / tokens for name in found[0]}
    median = mean(counts["median_target_rank"] for counts in found)
    return totals | {"median_target_rank": median, "tokens": tokens}
