"""Exact mode: what a wave proposes, checked against plain autoregression.

Autoregression gives every token r recurrences, in which it sees what older tokens were at the same
recurrence. One pass of r recurrences over proposed tokens computes exactly that for all of them, if
the cache keeps all recurrences; the wave meanwhile works in the places of the last r' ones. Tokens
are taken from this pass alone. At the first that differs from its proposal everything right of it
is void, and the wave begins again there: pipelined speculative decoding, with a wave that drafts.
"""

from __future__ import annotations

import torch

from .choosing import Chooser
from .depth import Depth
from .wave import Line


def verified(
    depth: Depth,
    chooser: Chooser,
    lines: list[Line],
    texts: list[list[int]],
    proposals: list[list[int]],
    steps: int,
) -> list[list[int]]:
    """New tokens of each line: its proposals up to the first that autoregression would not choose.

    In that one's place stands the token it chooses. The cache then holds, up to there, what
    autoregression would have left.
    - `texts`: the new tokens before the proposals; positions of a line begin after them.
    - `steps`: recurrences r.
    """
    starts = [line.first - len(p) for line, p in zip(lines, proposals, strict=True)]
    depth.trim(torch.tensor(starts))
    width = max(map(len, proposals))
    where = torch.full((len(lines), width), -1)
    ids = torch.zeros(len(lines), width, dtype=torch.long)
    for b, (start, text, proposed) in enumerate(zip(starts, texts, proposals, strict=True)):
        where[b, : len(proposed)] = torch.arange(start, start + len(proposed))
        # The token before the first proposal has been in the cache as the wave left it.
        ids[b, : len(proposed)] = torch.tensor([text[-1], *proposed][: len(proposed)])
    logits = depth.fixed(ids.to(depth.device), where, steps, keep=0)
    return [
        _agreed(chooser, line, text, proposed, scores)
        for line, text, proposed, scores in zip(lines, texts, proposals, logits, strict=True)
    ]


def _agreed(
    chooser: Chooser, line: Line, text: list[int], proposed: list[int], logits: torch.Tensor
) -> list[int]:
    taken: list[int] = []
    for scores, token in zip(logits, proposed, strict=False):
        taken.append(chooser.final(scores, line.row, text + taken))
        if taken[-1] != token or taken[-1] in chooser.request.eos:
            break
    return taken
