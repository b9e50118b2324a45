"""Rows that the model writes itself: greedy continuations of the text, anew every so many steps.

What a model repeats in them are its own loops, whatever they are made of.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, UsageError
from ..greedy import GREEDY
from ..recipe import AnyRecipe, DataSettings, RepetitionSettings
from . import processes
from .evaluate import evaluating
from .objectives import ON_REPEATS
from .packing import bos_of

_BATCH = 256  # documents tokenised in one call
_TOKENS = 2**15  # of rows that are written together: bounds the cache
ENOUGH = 1024  # beginnings of documents that make those inside them needless
# `repetition.origin` in words.
_ORIGINS = {"model": "rows that the model writes", "text": "sentences of the text, repeated"}


class OwnRows:
    """Beginnings taken from a text, and the rows last written from some of them.

    - `starts`: `[D, C]` int32, what is continued.
    - `seq_len`: tokens per row.
    - `settings`: what counts as a copy, and what training is to do with it.
    - `ends`: tokens that end a text; the first of them fills the rest of its row.
    """

    def __init__(
        self,
        starts: NDArray[np.int32],
        seq_len: int,
        settings: RepetitionSettings,
        ends: Sequence[int] = (),
    ) -> None:
        self.starts, self.seq_len, self.settings = starts, seq_len, settings
        self.ends = tuple(ends)
        self._held = {
            "window": torch.tensor(-1),  # which stretch of steps the rows are for
            "starts": torch.empty(0, dtype=torch.int64),  # `[N]`, which of them each continues
            "rows": torch.empty(0, seq_len + 1, dtype=torch.int32),
        }

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same between a run and its continuation."""
        return {
            **{f"repetition.{k}": v for k, v in self.settings.model_dump(mode="json").items()},
            "continued text (checksum)": zlib.crc32(self.starts),
        }

    def due(self, step: int) -> range | None:
        """The steps to write rows for before step `step`, from it on; None if it has its rows."""
        window, every = (step - 1) // self.settings.refresh, self.settings.refresh
        return None if self._held["window"] == window else range(step, (window + 1) * every + 1)

    def write(self, step: int, indices: Sequence[int], model: nn.Module) -> None:
        """Continue beginnings greedily with the weights of before step `step`; forget earlier rows.

        Processes share the work. `indices`: of the beginnings.
        """
        own = range(processes.rank(), len(indices), processes.count())
        rows = torch.zeros(len(indices), self.seq_len + 1, dtype=torch.int64)
        size = max(1, _TOKENS // self.seq_len)
        with torch.no_grad(), evaluating(model):
            for first in range(0, len(own), size):
                some = list(own[first : first + size])
                rows[some] = self._continued([indices[i] for i in some], model)
        self._held = {
            "window": torch.tensor((step - 1) // self.settings.refresh),
            "starts": torch.tensor(list(indices), dtype=torch.int64),
            "rows": processes.summed(rows).int(),
        }

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Rows as CPU tensors, each `[B, T]`, int64 but for the last.

        - `input_ids`, and `targets`: the token that follows each, none missing.
        - `written`: bool, whether the target is the model's own.

        Raises `KeyError` for a beginning that was not continued.
        """
        place = {start: i for i, start in enumerate(self._held["starts"].tolist())}
        chosen = [place[index] for index in indices]
        rows = self._held["rows"][chosen].long()
        return {
            "input_ids": rows[:, :-1],
            "targets": rows[:, 1:],
            "written": self._written(rows),
        }

    def state(self) -> dict[str, Tensor]:
        """The rows as they stand: they cannot be written again from later weights."""
        return self._held

    def restore(self, state: dict[str, Tensor]) -> None:
        """Put back what `state` gave."""
        self._held = state

    def _continued(self, indices: Sequence[int], model: nn.Module) -> Tensor:
        """`[N, T + 1]`, each beginning and what the model makes of it."""
        device = next(model.parameters()).device
        starts = torch.from_numpy(self.starts[indices].astype(np.int64)).to(device)
        pad = self.ends[0] if self.ends else 0
        rows = model.generate(
            input_ids=starts,
            attention_mask=torch.ones_like(starts),
            max_new_tokens=self.seq_len + 1 - starts.shape[1],
            eos_token_id=list(self.ends) or None,
            pad_token_id=pad,
            **GREEDY,
        )
        return F.pad(rows, (0, self.seq_len + 1 - rows.shape[1]), value=pad).cpu()

    def _written(self, rows: Tensor) -> Tensor:
        """`[B, T]` bool: targets behind the beginning, up to the end of the text."""
        own = torch.arange(rows.shape[1]) >= self.starts.shape[1]
        ended = own & torch.isin(rows, torch.tensor(self.ends, dtype=rows.dtype))
        return (own & (ended.cumsum(1) - ended.int() == 0))[:, 1:]


def check(recipe: AnyRecipe) -> None:
    """Raises `UsageError` where the recipe wants of its rows what they cannot give."""
    settings = recipe.repetition
    for name in recipe.training.objective:
        if (origin := ON_REPEATS.get(name, settings.origin)) != settings.origin:
            raise UsageError(
                f"objective '{name}' is for {_ORIGINS[origin]}; set repetition.origin={origin}"
            )
    if settings.origin == "model" and not 2 <= settings.context < recipe.data.seq_len:
        raise UsageError(
            f"repetition.context={settings.context} is what the model goes on from: at least 2 "
            f"tokens, and fewer than the row's {recipe.data.seq_len}"
        )


def build(
    texts: Iterable[str],
    text: DataSettings,
    settings: RepetitionSettings,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
) -> OwnRows:
    """Beginnings of `settings.context` tokens from the first `tokens` tokens of some documents.

    Of how documents begin, as prompts do; where those are fewer than `ENOUGH`, one more from every
    further `text.seq_len` tokens. Each begins with bos if `text` says so.

    Raises what reading the texts raises, and `InputError` where no document is that long.
    """
    bos = bos_of(tokenizer, text)
    own = settings.context - len(bos)
    heads, inner = [], []
    for ids in _tokenised(texts, tokenizer):
        ids = ids[:tokens]
        tokens -= len(ids)
        cut = [bos + ids[i : i + own] for i in range(0, len(ids) - own + 1, text.seq_len)]
        heads += cut[:1]
        inner += cut[1:]
        if not tokens:
            break
    found = heads if len(heads) >= ENOUGH else heads + inner
    if not found:
        raise InputError(
            f"{text.source} holds no document of {own} tokens to continue; "
            "lower repetition.context, or give longer documents"
        )
    ends = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return OwnRows(np.array(found, np.int32), text.seq_len, settings, ends)


def _tokenised(texts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    texts = iter(texts)
    while some := list(islice(texts, _BATCH)):
        yield from tokenizer(
            some, add_special_tokens=False, return_attention_mask=False, verbose=False
        )["input_ids"]
