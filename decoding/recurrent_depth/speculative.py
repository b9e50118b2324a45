"""Self-speculation: a model drafts with few recurrences and verifies with many.

Drafting is cheap because a looped model is its own small model: fewer recurrences, same weights,
same cache. A row's round: draft a few tokens one after the other, run all of them through the full
number of recurrences in one pass, keep those the full model agrees with, and one token of its own.

Source: Leviathan et al., arXiv 2211.17192 (algorithm 1), for drafts and their acceptance; Geiping
et al., arXiv 2502.05171, section 6.4, for drafting with fewer recurrences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel, require_looped

from ..sampling import pick
from .depth import Depth
from .loop import Rows
from .request import Compat, Request, Round, Run, check_compat, recurrences


@torch.no_grad()
def self_speculative(
    model: LoopedModel,
    request: Request,
    *,
    num_steps: int | None = None,
    draft_steps: int = 4,
    lookahead: int = 4,
    accept_threshold: float = 1.0,
    cache_budget: Any = None,
    init_scale: float = 0.0,
    compat: Compat = None,
    seeds: Sequence[int] | None = None,
) -> Run:
    """Continue each row of a request; rows advance at their own speed.

    With all recurrences in the cache (`cache_budget` None) and `init_scale` 0, greedy text is that
    of `autoregressive` token for token, up to the rounding of wider passes, and drawn tokens follow
    its distribution exactly. A cache that shares recurrences shows a verified token its neighbours
    at the current recurrence instead of their last one, and the text may differ.

    - `num_steps`: recurrences that verify; None: the model's own number.
    - `draft_steps`: recurrences that draft, fewer; `lookahead`: tokens drafted in a round.
    - `accept_threshold`: below 1, a draft is also accepted if its probability is at least this
      share of the top one's: faster, and no longer the same text. Greedy decoding only.
    - `cache_budget`, `init_scale`, `seeds`: see `autoregressive`.
    - `compat`: "reference": the rounds of the released code. When all drafts are accepted there is
      no further token, and the last round may run past `max_new_tokens`. One row, greedy.

    The request's processor is applied to verified tokens, to each once and in order, as in plain
    decoding. Drafts are made with copies of its remedies (those with a method `ahead`) and drawn
    after the same warpers, so that few of them are rejected for that.

    Raises `UsageError` for a model that is not looped and for values out of range, `CheckError`
    for logits without a usable token.
    """
    model = require_looped(model, needed_by="the sampler 'self-speculative'", goes_back=True)
    steps = recurrences(model.loop, num_steps)
    if recurrences(model.loop, draft_steps, "draft_steps") >= steps:
        raise UsageError(
            f"draft_steps={draft_steps} must be below num_steps={steps}: drafts are cheap because "
            "they take fewer recurrences"
        )
    if lookahead < 1:
        raise UsageError(f"lookahead={lookahead} is below 1: there would be no drafts")
    if not 0 < accept_threshold <= 1:
        raise UsageError(
            f"accept_threshold={accept_threshold} is outside (0, 1]; 1 keeps the model's own text"
        )
    if accept_threshold < 1 and request.generators is not None:
        raise UsageError(
            f"accept_threshold={accept_threshold} accepts by the top probability, which is not "
            "drawing: take the most likely tokens (temperature 0), or accept_threshold 1"
        )
    reference = check_compat(compat)
    if reference and (len(request.input_ids) > 1 or request.generators is not None):
        raise UsageError("compat='reference' runs one row, and takes the most likely tokens")
    depth = Depth(
        model, request.seeded(seeds), sharing=cache_budget, init_scale=init_scale, ahead=lookahead
    )
    return _Speculation(
        request, depth, steps, draft_steps, lookahead, accept_threshold, reference
    )()


@dataclass(frozen=True)
class _Drafts:
    """What a round proposes.

    - `counts`: drafts of each row; `tokens` [B, G], G the most of them.
    - `probs`: [B, G, V] that they were drawn from; None: the most likely ones.
    """

    counts: list[int]
    tokens: Tensor
    probs: Tensor | None


class _Speculation:
    def __init__(
        self,
        request: Request,
        depth: Depth,
        num_steps: int,
        draft_steps: int,
        lookahead: int,
        accept_threshold: float,
        reference: bool,
    ) -> None:
        self.request, self.depth, self.reference = request, depth, reference
        self.num_steps, self.draft_steps, self.lookahead = num_steps, draft_steps, lookahead
        self.margin = math.log(accept_threshold)
        self.lengths = request.real.sum(1).tolist()
        room = request.max_new_tokens + (lookahead if reference else 0)
        self.rows = Rows(replace(request, max_new_tokens=room))

    def __call__(self) -> Run:
        request, depth, rows = self.request, self.depth, self.rows
        logits = depth.fixed(request.input_ids, request.where, self.num_steps)
        for row, own in zip(depth.rows, logits, strict=True):
            rows.add(row, self._judge(row, own, [], None)[0])
        while self._go_on():
            drafts = self._draft()
            logits = self._verify(drafts)
            for i, row in enumerate(depth.rows):
                self._accept(i, row, drafts, logits[i])
            depth.trim(self._cached())
        return Run(rows.ids(), depth.spent)

    def _go_on(self) -> bool:
        """Drop rows that are done; whether one is left."""
        self.rows.ask()
        enough = self.request.max_new_tokens
        full = [len(tokens) >= enough for tokens in self.rows.tokens]
        self.depth.keep([not (self.rows.done[row] or full[row]) for row in self.depth.rows])
        return bool(self.depth.rows)

    def _draft(self) -> _Drafts:
        depth, request = self.depth, self.request
        counts = [self._count(row) for row in depth.rows]
        guides = [self._guide(row) for row in depth.rows]
        texts = [self._text(row) for row in depth.rows]
        first, token = self._cached(), self._last()
        tokens, probs = [], []
        for i in range(max(counts)):
            here = torch.tensor(counts) > i
            where = (first + i).where(here, torch.tensor(-1))[:, None]
            logits = depth.fixed(token, where, self.draft_steps)[:, -1]
            scores = torch.cat(
                [
                    guide(text, own[None])
                    for guide, text, own in zip(guides, texts, logits, strict=True)
                ]
            ).nan_to_num(0.0)  # the verifier tells of broken logits
            if request.generators is None:
                token = scores.argmax(-1, keepdim=True)
            else:
                p = request.probs(scores)
                u = [
                    request.uniform(r) if h else 0.0 for r, h in zip(depth.rows, here, strict=True)
                ]
                token = pick(p, torch.tensor(u, dtype=torch.float64).to(p.device))[:, None]
                probs.append(p)
            tokens.append(token)
            texts = [
                torch.cat([text, own[None]], 1) for text, own in zip(texts, token, strict=True)
            ]
        drafted = torch.cat([self._last()[:, :0], *tokens], 1)
        return _Drafts(counts, drafted, torch.stack(probs, 1) if probs else None)

    def _guide(self, row: int) -> LogitsProcessorList:
        """Copies of a row's remedies, which may run ahead of the text."""
        own = self.request.per_row[row].logits_processor
        return LogitsProcessorList(p.ahead() for p in own if hasattr(p, "ahead"))

    def _verify(self, drafts: _Drafts) -> Tensor:
        """Logits [B, 1 + G, V] after each row's last token and each of its drafts."""
        first, inputs = self._cached(), torch.cat([self._last(), drafts.tokens], 1)
        ends = first + torch.tensor(drafts.counts)
        if self.reference:  # the last draft is not run, so nothing follows it
            ends, inputs = ends - 1, inputs[:, :-1]
        where = first[:, None] + torch.arange(inputs.shape[1])
        self.depth.trim(first)
        where = where.masked_fill(where > ends[:, None], -1)
        return self.depth.fixed(inputs, where, self.num_steps, keep=0)

    def _accept(self, i: int, row: int, drafts: _Drafts, logits: Tensor) -> None:
        depth, count = self.depth, drafts.counts[i]
        drafted = drafts.tokens[i, :count].tolist()
        probs = None if drafts.probs is None else drafts.probs[i]
        gained, accepted = self._judge(row, logits, drafted, probs)
        self.rows.add(row, gained)
        passes, cached = depth.spent.core_passes, self._stays(row)
        depth.spent.rounds.append(Round(row, drafted, accepted, gained, passes, cached))

    def _judge(
        self, row: int, logits: Tensor, drafted: Sequence[int], probs: Tensor | None
    ) -> tuple[list[int], int]:
        """New tokens of a row, and how many of its drafts are among them.

        - `logits` [n, V] after its last token and after each draft that was run.
        - `probs` [n, V] that the drafts were drawn from.
        """
        own = self.request.per_row[row]
        ids = self._text(row)
        gained: list[int] = []
        for n in range(min(len(logits), len(drafted) + 1)):
            scores = own.scores(ids, logits[n : n + 1])[0]
            draft = drafted[n] if n < len(drafted) else None
            if own.generators is None:
                token, agrees = self._most_likely(scores, draft)
            else:
                p = own.probs(scores[None])[0]
                token, agrees = _drawn(own, p, draft, None if draft is None else probs[n])
            gained.append(token)
            if not agrees:
                return gained, n
            if token in own.eos:
                return gained, n + 1
            ids = torch.cat([ids, ids.new_tensor([[token]])], 1)
        return gained, len(gained)

    def _most_likely(self, scores: Tensor, draft: int | None) -> tuple[int, bool]:
        best = int(scores.argmax())
        if draft is None or draft == best:
            return best, draft == best
        near = self.margin < 0 and bool(scores[draft] >= scores[best] + self.margin)
        return (draft, True) if near else (best, False)

    def _count(self, row: int) -> int:
        """Drafts of a row: with the verifier's own token they fill what it has left at most."""
        left = self.request.max_new_tokens - len(self.rows.tokens[row])
        return self.lookahead if self.reference else min(self.lookahead, left - 1)

    def _stays(self, row: int) -> int:
        """Tokens of a row in the cache that stay: all but the last."""
        return self.lengths[row] + len(self.rows.tokens[row]) - 1

    def _cached(self) -> Tensor:
        """[B] `_stays` of every row at work, which is where its last token stands."""
        return torch.tensor([self._stays(row) for row in self.depth.rows])

    def _text(self, row: int) -> Tensor:
        """[1, n] ids of a row so far."""
        prompt = self.request.per_row[row].input_ids
        new = torch.tensor([self.rows.tokens[row]], dtype=prompt.dtype, device=prompt.device)
        return torch.cat([prompt, new], 1)

    def _last(self) -> Tensor:
        """[B, 1] each row's last token."""
        last = [[self.rows.tokens[row][-1]] for row in self.depth.rows]
        return torch.tensor(last, device=self.request.input_ids.device)


def _drawn(own: Request, p: Tensor, draft: int | None, q: Tensor | None) -> tuple[int, bool]:
    """A token distributed as `p` [V], and whether it is the draft, which was drawn from `q` [V]."""
    if draft is None:
        return own.draw(0, p), False
    p, q = p.double(), q.double()
    if own.uniform(0) * float(q[draft]) < float(p[draft]):
        return draft, True
    rest = (p - q).clamp(min=0)
    return own.draw(0, rest if rest.sum() > 0 else p), False
