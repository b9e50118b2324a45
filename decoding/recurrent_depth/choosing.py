"""Tokens of a whole wave: drafts as often as one likes, final ones once and in order.

- Everything that applies to a plain token applies to drafts: processors see the text that a draft
  would follow, and a place in the text has one random number, so that drafts that are decided again
  from like logits stay as they are.
- Processors that remember follow final tokens only; drafts are decided by copies of them.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor
from transformers import LogitsProcessor

from ..finite import Finite
from ..repetition.rows import RowProcessor
from ..sampling import pick
from .request import Request


class Chooser:
    """Tokens of one batch. `place` counts a row's new tokens from 0."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.rows = request.per_row
        length = request.input_ids.shape[1]
        for row in self.rows:
            for processor in row.logits_processor:
                if isinstance(processor, RowProcessor) and processor.prompt_length is None:
                    processor.prompt_length = length
        self._numbers: list[list[Tensor]] = [[] for _ in self.rows]
        # What reads ids must see every draft in turn; without it the wave is decided at once.
        self._reads = any(not isinstance(p, Finite) for r in self.rows for p in r.logits_processor)

    def drafts(
        self, logits: Tensor, rows: list[int], places: list[int], texts: list[list[int]]
    ) -> Tensor:
        """[B, W] int64 on the CPU: what each position of a wave predicts.

        - `logits` [B, W, V]; `rows` says which row of the request each is.
        - `places`: of the token that column 0 predicts; `texts`: the row's new tokens before it.
        """
        if self._reads:
            return torch.stack(
                [
                    self._in_turn(scores, row, text)
                    for scores, row, text in zip(logits, rows, texts, strict=True)
                ]
            )
        if self.request.generators is None:
            return logits.argmax(-1).cpu()
        B, W, V = logits.shape
        probs = self.request.probs(logits.flatten(0, 1))
        u = torch.stack(
            [
                self._number(row, p + i)
                for row, p in zip(rows, places, strict=True)
                for i in range(W)
            ]
        )
        return pick(probs, u.to(probs.device)).view(B, W).cpu()

    def final(self, logits: Tensor, row: int, text: list[int]) -> int:
        """The token after a row's new tokens `text`, from logits [V]; once and in order.

        Raises `CheckError` if there is no usable token and nobody else hears of it.
        """
        own = self.rows[row]
        scores = own.scores(self._ids(row, text), logits[None])
        return self._take(scores, row, len(text))

    @property
    def watched(self) -> bool:
        """Whether final tokens must pass `final` even when their draft is known."""
        return self._reads

    def _in_turn(self, logits: Tensor, row: int, text: list[int]) -> Tensor:
        processors = [_ahead(p) for p in self.rows[row].logits_processor if type(p) is not Finite]
        ids, tokens = self._ids(row, text), []
        for scores in logits:
            scores = scores[None]
            for processor in processors:
                scores = processor(ids, scores)
            tokens.append(self._take(scores, row, len(text) + len(tokens)))
            ids = torch.cat([ids, ids.new_tensor([tokens[-1:]])], 1)
        return torch.tensor(tokens)

    def _take(self, scores: Tensor, row: int, place: int) -> int:
        if self.request.generators is None:
            return int(scores.argmax(-1))
        probs = self.request.probs(scores)
        return int(pick(probs, self._number(row, place)[None].to(probs.device)))

    def _number(self, row: int, place: int) -> Tensor:
        numbers = self._numbers[row]
        while len(numbers) <= place:
            numbers.append(self.request.uniform(row))
        return numbers[place]

    def _ids(self, row: int, text: list[int]) -> Tensor:
        ids = self.rows[row].input_ids
        return torch.cat([ids, ids.new_tensor([text], dtype=ids.dtype)], 1)


def _ahead(processor: LogitsProcessor) -> LogitsProcessor:
    """One that may run ahead of the text without moving the one that follows it."""
    if isinstance(processor, RowProcessor):
        return processor.ahead()
    return copy(processor)
