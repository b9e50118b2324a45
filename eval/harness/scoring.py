"""Log probabilities of continuations, in batches, each shared beginning encoded once.

- A request is a row of token ids whose last `scored` positions predict what is asked for.
- Without a shared beginning a batch is one plain forward pass, padded on the right: what comes
  after a token does not change it in a causal model.
- A shared beginning is encoded once, its cache is copied to the requests behind it. Rows of
  different lengths carry padding in their middle, which a mask hides; where a model's cache cannot
  hide it, only rows of equal length share a batch.
- Long rows go through in pieces, and logits are computed only where they are read.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from linearize.liger.state import snapshot
from linearize.recurrent_depth.interface import is_looped

from .prefixes import Branch, shared

PIECE = 4096  # columns per pass
FILLED = 0.75  # of a beginning's batch: the shortest row is at least this part of the longest


@dataclass(frozen=True)
class Row:
    """Input `tokens`, whose last `scored` positions predict `tokens[1:]` and one of `lasts`.

    `prefix`: how many tokens a model that encodes its prompt as a whole may read that way.
    """

    tokens: tuple[int, ...]
    scored: int
    lasts: tuple[int, ...]
    prefix: int = 0

    @property
    def shareable(self) -> int:
        """Tokens before the first prediction that is read."""
        return len(self.tokens) - self.scored


@dataclass(frozen=True)
class Scores:
    """Of one row: `own` [scored - 1] log probabilities of its own next tokens and `hits`, whether
    each was the most likely; `last`: candidate -> (log probability, whether most likely)."""

    own: list[float]
    hits: list[bool]
    last: dict[int, tuple[float, bool]]

    def of(self, continuation: Sequence[int]) -> tuple[float, bool]:
        """(log probability, whether greedy decoding would give it) of a continuation."""
        n = len(continuation) - 1
        last, hit = self.last[continuation[-1]]
        own = self.own[len(self.own) - n :]
        return sum(own) + last, hit and all(self.hits[len(self.hits) - n :])


@dataclass(frozen=True)
class _Held:
    """Encoded beginnings: `real` [N, columns] bool on the CPU, False where a row has padding."""

    cache: Any
    real: Tensor


class Scorer:
    """Scores rows with one model.

    Args:
        model: a causal LM of transformers, in evaluation mode.
        batch_size: rows per pass; with `shrink` it is halved when memory runs out.
        reuse: encode shared beginnings once.

    `reuse` is True afterwards only if the model has a cache that can be copied.
    """

    def __init__(self, model: Any, *, batch_size: int, shrink: bool, reuse: bool) -> None:
        self.model, self.batch_size, self.shrink = model, batch_size, shrink
        self.takes = set(inspect.signature(model.forward).parameters)
        spec = (getattr(model.config, "linearize", None) or {}).get("spec") or {}
        # A prompt encoded as a whole has no beginning that could be shared or read in pieces.
        self.prefixes = spec.get("prefix", "none") != "none"
        self.cached = "past_key_values" in self.takes and not self.prefixes
        self.reuse = reuse and self.cached

    def __call__(
        self, rows: Sequence[Row], on_scores: Callable[[list[tuple[int, Scores]]], None]
    ) -> None:
        """Calls `on_scores` with pairs (index of the row, scores) as batches are finished."""
        if self.reuse:
            tree = shared([row.tokens[: row.shareable] for row in rows])
        else:
            tree = list(range(len(rows)))
        with torch.inference_mode():
            self._descend(rows, [(0, node) for node in tree], None, on_scores)

    def _descend(
        self,
        rows: Sequence[Row],
        nodes: Sequence[tuple[int, Branch | int]],
        held: _Held | None,
        on_scores: Callable[[list[tuple[int, Scores]]], None],
    ) -> None:
        """Score what lies behind `nodes`: pairs of a row of `held` and what continues it."""
        depth = {row: 0 for row, _ in nodes}
        if held is not None:
            depth = dict(enumerate(held.real.sum(1).tolist()))

        def encode(some: Sequence[tuple[int, Branch]]) -> None:
            parts = [rows[b.of].tokens[b.start : b.end] for _, b in some]
            deeper = self._encode(held, [row for row, _ in some], parts)
            inside = [(row, node) for row, (_, b) in enumerate(some) for node in b.below]
            self._descend(rows, inside, deeper, on_scores)

        def score(some: Sequence[tuple[int, int]]) -> None:
            parts = [rows[i].tokens[depth[row] :] for row, i in some]
            found = self._score(held, [row for row, _ in some], parts, [rows[i] for _, i in some])
            on_scores([(i, scores) for (_, i), scores in zip(some, found, strict=True)])

        branches = [(row, b) for row, b in nodes if isinstance(b, Branch)]
        branches.sort(key=lambda pair: pair[1].start - pair[1].end)
        for alike in self._alike(branches, lambda pair: pair[1].end - pair[1].start):
            self._in_batches(alike, encode)
        leaves = [(row, i) for row, i in nodes if not isinstance(i, Branch)]
        leaves.sort(key=lambda pair: depth[pair[0]] - len(rows[pair[1]].tokens))
        self._in_batches(leaves, score)

    def _alike(self, jobs: list, length: Callable[[Any], int]) -> Iterator[list]:
        """Jobs, longest first, in groups that may share a batch and be continued."""
        part = FILLED if self._hides_padding else 1
        group: list = []
        for job in jobs:
            if group and length(job) < part * length(group[0]):
                yield group
                group = []
            group.append(job)
        if group:
            yield group

    @functools.cached_property
    def _hides_padding(self) -> bool:
        """Whether a cache may hold padding between tokens."""
        converted = "spec" in (getattr(self.model.config, "linearize", None) or {})
        return self._plain or converted or is_looped(self.model)

    @functools.cached_property
    def _plain(self) -> bool:
        """Whether every layer is softmax attention over all keys, in a cache of transformers."""
        if is_looped(self.model) or not {"position_ids", "attention_mask"} <= self.takes:
            return False
        cache = DynamicCache(config=self.model.config.get_text_config())
        return bool(cache.layers) and all(type(layer) is DynamicLayer for layer in cache.layers)

    def _in_batches(self, jobs: list, run: Callable[[list], None]) -> None:
        first = 0
        while first < len(jobs):
            some = jobs[first : first + self.batch_size]
            try:
                run(some)
            except RuntimeError as error:
                if not self.halve(error, len(some)):
                    raise
                continue
            first += len(some)

    def halve(self, error: RuntimeError, rows: int) -> bool:
        """Whether `rows` rows were too many and fewer may be tried: memory ran out."""
        if not (self.shrink and rows > 1 and should_reduce_batch_size(error)):
            return False
        self.batch_size = max(1, min(self.batch_size, rows) // 2)
        clear_device_cache(garbage_collection=True)
        return True

    def _encode(self, held: _Held | None, of: list[int], parts: list[tuple[int, ...]]) -> _Held:
        columns = max(map(len, parts))
        new = torch.arange(columns) < torch.tensor([len(p) for p in parts])[:, None]
        *_, (_, _, cache) = self._passes(held, of, parts, new, keep=None)
        real = new if held is None else torch.cat([held.real[of], new], 1)
        return _Held(cache, real)

    def _score(
        self, held: _Held | None, of: list[int], parts: list[tuple[int, ...]], rows: list[Row]
    ) -> list[Scores]:
        columns = max(map(len, parts))
        firsts = [len(p) - row.scored for p, row in zip(parts, rows, strict=True)]
        # Padding at the end follows every token that is read, so nothing needs to hide it.
        new = torch.ones(len(parts), columns, dtype=torch.bool)
        found = [Scores([], [], {}) for _ in rows]
        extra = {}
        if self.prefixes:
            extra["prefix_lengths"] = torch.tensor([row.prefix for row in rows])
        for start, logits, _ in self._passes(held, of, parts, new, keep=min(firsts), **extra):
            for i, part in enumerate(parts):
                low, high = max(firsts[i], start), min(len(part), start + logits.shape[1])
                if low < high:
                    mine = logits[i, low - start : high - start]
                    self._read(mine, part[low + 1 : high + 1], rows[i].lasts, found[i])
        return found

    def _read(
        self, logits: Tensor, own: Sequence[int], lasts: Sequence[int], found: Scores
    ) -> None:
        """Add the predictions of positions [n, V]; the last one has no own next token."""
        logp = logits.float().log_softmax(-1)
        best = logp.argmax(-1).tolist()
        wanted = torch.tensor(own, device=logp.device, dtype=torch.long)
        found.own.extend(logp[: len(own)].gather(1, wanted[:, None])[:, 0].tolist())
        found.hits.extend(b == t for b, t in zip(best, own, strict=False))
        if len(own) < len(logp):
            candidates = torch.tensor(lasts, device=logp.device)
            values = logp[-1, candidates].tolist()
            for token, value in zip(lasts, values, strict=True):
                found.last[token] = (value, best[-1] == token)

    def _passes(
        self,
        held: _Held | None,
        of: list[int],
        parts: list[tuple[int, ...]],
        new: Tensor,
        keep: int | None,
        **extra: Tensor,
    ) -> Iterator[tuple[int, Tensor, Any]]:
        """Run `parts` after the beginnings `of` in pieces.

        - `new`: [N, columns] bool, what the mask says of the new columns.
        - `keep`: the first column whose logits are read; None = none, but the cache is kept.
        - `extra`: further arguments of the model.

        Yields (first column of the logits, logits [N, n, V], cache) for pieces that are read, and
        for the last one.
        """
        columns = new.shape[1]
        width = PIECE if self.cached else columns
        caching = held is not None or keep is None or columns > width
        ids = torch.tensor([[*p, *[0] * (columns - len(p))] for p in parts])
        cache, past = None, torch.zeros(len(parts), 0, dtype=torch.bool)
        if held is not None:
            cache, past = snapshot(held.cache, torch.tensor(of)), held.real[of]
        mask = torch.cat([past, new], 1)
        lengths = past.sum(1, keepdim=True) + torch.tensor([len(p) for p in parts])[:, None]
        # A place behind the row's end has no position of its own: there might be none left.
        positions = (mask.long().cumsum(1) - 1).clamp(min=0).minimum(lengths - 1)
        # Plain attention needs to be told of padding only where it lies before what is read: as
        # long as it lies at the end, keys and values of real tokens do not depend on it.
        told = past if self._plain else mask
        padded = not bool(told.all())
        device = self.model.device
        for start in range(0, columns, width):
            end = min(start + width, columns)
            seen = past.shape[1] + end
            given: dict[str, Any] = {"input_ids": ids[:, start:end].to(device)}
            given |= {name: x.to(device) for name, x in extra.items()}
            if padded:
                given["attention_mask"] = mask[:, :seen].long().to(device)
                if "position_ids" in self.takes:
                    own = positions[:, past.shape[1] + start : seen]
                    given["position_ids"] = own.to(device)
            if self.cached:
                given["use_cache"] = caching
                if cache is not None:
                    given["past_key_values"] = cache
            first = end - 1 if keep is None else max(keep, start)
            if "logits_to_keep" in self.takes:
                given["logits_to_keep"] = max(1, end - first)
            output = self.model(**given)
            cache = output.past_key_values if caching else None
            if first < end:
                yield first, output.logits[:, first - end :], cache
            elif end == columns:
                yield end, output.logits[:, :0], cache
