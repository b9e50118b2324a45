"""A whole loop as a sampler: how transformers' `generate` reaches it, and how its rows end.

transformers prepares processors and criteria and then calls a `Loop` instead of its own loop
(`custom_generate`). A streamer does not reach it; criteria do, so text is shown there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessorList, StoppingCriteriaList

from linearize.recurrent_depth.interface import LoopedModel, require_looped

from ..sampling import LOOPED, SAMPLERS, Sampler, warpers
from .request import Request, Run

# (model, request) -> the ids and what they cost
Loops = Callable[[LoopedModel, Request], Run]


def register(name: str) -> Callable[[Callable[..., Sampler]], Callable[..., Sampler]]:
    """Makes a factory a row of `SAMPLERS` that fits looped models only."""

    def add(factory: Callable[..., Sampler]) -> Callable[..., Sampler]:
        SAMPLERS[name] = factory
        LOOPED.add(name)
        return factory

    return add


def sampler(
    name: str,
    run: Callable[[Sequence[int]], Loops],
    *,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    typical: float,
    draws: bool = False,
) -> Sampler:
    """What such a factory returns. `run` makes the loop from the seeds of a batch, one per prompt.

    - `temperature` and cuts as in `sampling.sample`; temperature 0 takes the most likely token.
    - `draws`: another seed gives another text even then.
    """
    cuts = warpers(temperature, top_k, top_p, min_p, typical)
    return Sampler(
        lambda seeds: {
            "custom_generate": Loop(
                run(seeds), name=name, seeds=seeds if temperature else None, cuts=cuts
            )
        },
        draws=draws or temperature > 0,
    )


class Loop:
    """A loop in the form that transformers' `generate` takes as `custom_generate`.

    - `seeds`: one per row to draw tokens with after `cuts`; None takes the most likely token.

    `stats` tells of each row of the last batch what it cost.
    """

    def __init__(
        self,
        run: Loops,
        *,
        name: str,
        seeds: Sequence[int] | None = None,
        cuts: LogitsProcessorList | None = None,
    ) -> None:
        self.run, self.name, self.seeds, self.cuts = run, name, seeds, cuts
        self.stats: list[dict[str, Any]] = []

    def __call__(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: Any,
        **prepared: Any,  # naming attention_mask here would make transformers pass it twice
    ) -> Tensor:
        """`input_ids` [B, L] int64, padded on the left -> [B, L + new], padded on the right."""
        looped = require_looped(model, needed_by=f"the sampler '{self.name}'")
        seeds = self.seeds
        request = Request(
            input_ids,
            generation_config.max_length - input_ids.shape[1],
            attention_mask=prepared.get("attention_mask"),
            logits_processor=logits_processor,
            warpers=self.cuts,
            generators=seeds and [torch.Generator().manual_seed(seed) for seed in seeds],
            stopping_criteria=stopping_criteria,
            eos_token_id=generation_config.eos_token_id,
            pad_token_id=generation_config.pad_token_id or 0,
        )
        found = self.run(looped, request)
        self.stats = [found.spent.row(row) for row in range(len(input_ids))]
        return found.ids


class Rows:
    """New tokens of a batch whose rows grow at different speed, and which rows are done.

    Ends of text and the length are seen at once. Criteria are transformers': they want rows of one
    length, so they see what all unfinished rows have, token by token.
    """

    def __init__(self, request: Request) -> None:
        self.request = request
        count = len(request.input_ids)
        self.tokens: list[list[int]] = [[] for _ in range(count)]
        self.done = [False] * count
        self._asked = 0

    def add(self, row: int, tokens: Sequence[int]) -> None:
        """Append final tokens of a row; what follows its end is dropped."""
        for token in tokens:
            if not self.done[row]:
                self.tokens[row].append(token)
                full = len(self.tokens[row]) >= self.request.max_new_tokens
                self.done[row] = full or token in self.request.eos

    def ask(self) -> None:
        """Let the criteria see what is new to them. Rows that they end are cut there."""
        criteria = self.request.stopping_criteria
        while criteria is not None and self._asked < self._common():
            self._asked += 1
            ended = criteria(self.ids(self._asked), None).tolist()
            for row, end in enumerate(ended):
                if end and (not self.done[row] or len(self.tokens[row]) > self._asked):
                    self.done[row] = True
                    del self.tokens[row][self._asked :]

    def ids(self, new: int | None = None) -> Tensor:
        """[B, L + new] prompts and the first new tokens (None: all), padded."""
        new = max(map(len, self.tokens)) if new is None else new
        pad = [self.request.pad_token_id] * new
        rows = [(row[:new] + pad)[:new] for row in self.tokens]
        ids = self.request.input_ids
        return torch.cat([ids, ids.new_tensor(rows, dtype=ids.dtype).view(len(ids), new)], 1)

    def _common(self) -> int:
        growing = [len(t) for t, d in zip(self.tokens, self.done, strict=True) if not d]
        return min(growing) if growing else max(map(len, self.tokens))
