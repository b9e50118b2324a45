"""What every sampler of a looped model is asked for, and what it answers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import LogitsProcessorList

from linearize.errors import CheckError, UsageError
from linearize.recurrent_depth.interface import MAX_RECURRENCES, LoopFacts

from ..sampling import pick

Compat = Literal["reference"] | None


@dataclass(frozen=True)
class Request:
    """A batch of prompts and how its tokens are chosen.

    - `input_ids` int64 [B, T], padded on the left; `attention_mask` [B, T], 1 = real token; None:
      no padding.
    - `max_new_tokens`: of each row, reached exactly unless the row ends before.
    - `logits_processor`: (ids [B, n], logits [B, V]) -> logits, called for every token that is
      chosen, in order.
    - `generators`: one per row, on the CPU: tokens are drawn; None: the most likely one.
    - `warpers`: what sampling does to the logits before it draws (temperature, cuts); they look at
      no ids.
    - `stopping_criteria`: (ids [B, n], None) -> [B] bool, called once for every new column.
    - `eos_token_id`: ids that end a row at once; `pad_token_id` fills rows that have ended.

    Raises `UsageError` for values that do not fit together.
    """

    input_ids: Tensor
    max_new_tokens: int
    attention_mask: Tensor | None = None
    logits_processor: Callable[[Tensor, Tensor], Tensor] | None = None
    warpers: Callable[[Tensor, Tensor], Tensor] | None = None
    generators: Sequence[torch.Generator] | None = None
    stopping_criteria: Callable[[Tensor, Any], Tensor] | None = None
    eos_token_id: int | Iterable[int] | None = None
    pad_token_id: int = 0
    eos: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        if self.input_ids.ndim != 2 or 0 in self.input_ids.shape:
            shape = tuple(self.input_ids.shape)
            raise UsageError(f"input_ids {shape} must be [rows, tokens], with at least one of each")
        if self.max_new_tokens < 1:
            raise UsageError(f"max_new_tokens={self.max_new_tokens} is below 1")
        mask = self.attention_mask
        if mask is not None and mask.shape != self.input_ids.shape:
            raise UsageError(
                f"attention_mask {tuple(mask.shape)} must have the shape of input_ids, "
                f"{tuple(self.input_ids.shape)}"
            )
        if not self.real[:, -1].all() or (self.real.int().diff(dim=1) < 0).any():
            raise UsageError("prompts must be padded on the left: real tokens last, without gaps")
        if self.generators is not None and len(self.generators) != len(self.input_ids):
            raise UsageError(
                f"{len(self.generators)} generators for {len(self.input_ids)} rows; give one each"
            )
        ids = self.eos_token_id
        ends = () if ids is None else [ids] if isinstance(ids, int) else ids
        object.__setattr__(self, "eos", frozenset(int(i) for i in ends))

    @property
    def real(self) -> Tensor:
        """[B, T] bool on the CPU: which ids are tokens."""
        if self.attention_mask is None:
            return torch.ones(self.input_ids.shape, dtype=torch.bool)
        return self.attention_mask.bool().cpu()

    @property
    def where(self) -> Tensor:
        """[B, T] int64 on the CPU: position of each token in its row, -1 for padding."""
        real = self.real
        return (real.long().cumsum(1) - 1).where(real, torch.tensor(-1))

    def scores(self, ids: Tensor, logits: Tensor) -> Tensor:
        """Logits [B, V] after the processor. Raises `CheckError` if no token can be chosen."""
        if self.logits_processor is not None:
            logits = self.logits_processor(ids, logits)
        broken = (~logits.amax(-1).isfinite()).nonzero()[:, 0].tolist()
        if broken:
            raise CheckError(
                f"row {broken[0]}: the logits after {ids.shape[1]} ids are NaN or infinite; the "
                "model's states have overflowed (try float32), or a processor forbids every token"
            )
        return logits

    @cached_property
    def per_row(self) -> list[Request]:
        """One request per row, for loops whose rows differ in length.

        Processors with a method `for_row` tell their rows apart, and are asked for one that serves
        a single row; others remember nothing and are used as they are.
        """
        shared = self.logits_processor
        each = shared if isinstance(shared, LogitsProcessorList) else [shared] if shared else []

        def own(row: int) -> LogitsProcessorList:
            return LogitsProcessorList(p.for_row(row) if hasattr(p, "for_row") else p for p in each)

        return [
            replace(
                self,
                input_ids=self.input_ids[row : row + 1],
                attention_mask=self.real[row : row + 1],
                logits_processor=own(row),
                generators=self.generators and [self.generators[row]],
                stopping_criteria=None,
            )
            for row in range(len(self.input_ids))
        ]

    def seeded(self, seeds: Sequence[int] | None) -> Request:
        """The same with generators from these seeds, one per row; None: its own, or seed 0."""
        if seeds is None and self.generators is not None:
            return self
        seeds = [0] * len(self.input_ids) if seeds is None else seeds
        return replace(self, generators=[torch.Generator().manual_seed(seed) for seed in seeds])

    def probs(self, scores: Tensor) -> Tensor:
        """[B, V] probabilities that sampling draws from."""
        scores = scores.float()
        if self.warpers is not None:
            scores = self.warpers(None, scores)
        return scores.softmax(-1)

    def draw(self, row: int, probs: Tensor) -> int:
        """A token by the generator of `row`; `probs` [V] need not sum to 1."""
        return int(pick(probs[None], self.uniform(row)[None]))

    def uniform(self, row: int) -> Tensor:
        """A number in [0, 1), float64, by the generator of `row`."""
        return torch.rand((), generator=self.generators[row], dtype=torch.float64)


@dataclass
class Spent:
    """What a run cost.

    - `core_passes`: calls of the core, whatever their width, the prompt's included;
      `core_tokens`: tokens they worked on, padding and unused places not counted.
    - `steps`: per row, recurrences that gave each new token.
    - `exit_values`: per row and new token, what the exit criterion measured (adaptive sampler).
    - `rounds`: what was drafted and accepted (self-speculative sampler).
    """

    core_passes: int = 0
    core_tokens: int = 0
    steps: list[list[int]] = field(default_factory=list)
    exit_values: list[list[list[float]]] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    def row(self, row: int) -> dict[str, Any]:
        """What there is to say of one row; passes and tokens are the whole batch's."""
        told: dict[str, Any] = {"core_passes": self.core_passes, "core_tokens": self.core_tokens}
        if self.steps:
            told["steps"] = self.steps[row]
        if rounds := [r for r in self.rounds if r.row == row]:
            told["drafted"] = sum(len(r.drafted) for r in rounds)
            told["accepted"] = sum(r.accepted for r in rounds)
        return told


@dataclass(frozen=True)
class Round:
    """One row in one round of speculation.

    - `drafted`: tokens proposed; `accepted`: how many of them were kept; `gained`: tokens added.
    - `core_passes`: of the whole batch up to the end of this round; `cached`: tokens of the row
      in the cache after it.
    """

    row: int
    drafted: list[int]
    accepted: int
    gained: list[int]
    core_passes: int
    cached: int


@dataclass(frozen=True)
class Run:
    """`ids` int64 [B, T + n], prompts included, rows that ended padded; and what it cost."""

    ids: Tensor
    spent: Spent


def recurrences(facts: LoopFacts, value: int | None, name: str = "num_steps") -> int:
    """A number of recurrences, the model's own for None. Raises `UsageError` out of range."""
    value = facts.recurrences if value is None else value
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name}={value!r} is not a whole number of recurrences")
    if not 1 <= value <= MAX_RECURRENCES:
        raise UsageError(f"{name}={value} is out of range: 1 to {MAX_RECURRENCES} recurrences")
    return value


def check_compat(compat: str | None) -> bool:
    """Whether the released code is to be followed. Raises `UsageError` for anything unknown."""
    if compat not in (None, "reference"):
        raise UsageError(
            f"compat={compat!r}: leave it out, or give 'reference' (the released code)"
        )
    return compat == "reference"
