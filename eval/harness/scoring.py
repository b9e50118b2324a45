"""Log probabilities of continuations, in batches, each shared beginning encoded once.

- A request is a row of token ids whose last `scored` positions predict what is asked for.
- Without a shared beginning a batch is one plain forward pass, padded on the right: what comes
  after a token does not change it in a causal model.
- A shared beginning is encoded once, its cache is copied to the requests behind it. Rows of
  different lengths carry padding in their middle, which a mask hides; where a model's cache cannot
  hide it, only rows of equal length share a batch.
- Where every layer is softmax attention, the requests behind a beginning stand beside each other
  in one row.
- Long rows go through in pieces, and logits are computed only where they are read.
"""

from __future__ import annotations

import functools
import inspect
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from linearize.errors import UsageError
from linearize.liger.state import snapshot
from linearize.recurrent_depth.interface import is_looped

from . import beside
from .batches import batches, fixed_cost
from .prefixes import Branch, shared

PIECE = 4096  # columns per pass


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

    `reuse` is True afterwards only if the model has a cache that can be copied. `read` counts the
    tokens that the model was given, padding aside.
    """

    def __init__(self, model: Any, *, batch_size: int, shrink: bool, reuse: bool) -> None:
        self.model, self.batch_size, self.shrink = model, batch_size, shrink
        self.takes = set(inspect.signature(model.forward).parameters)
        spec = (getattr(model.config, "linearize", None) or {}).get("spec") or {}
        # A prompt encoded as a whole has no beginning that could be shared or read in pieces.
        self.prefixes = spec.get("prefix", "none") != "none"
        self.cached = "past_key_values" in self.takes and not self.prefixes
        self.reuse = reuse and self.cached
        self.read = 0

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

        def left(row: int, i: int) -> int:
            return len(rows[i].tokens) - depth[row]

        def encode(some: Sequence[tuple[int, Branch]]) -> None:
            parts = [rows[b.of].tokens[b.start : b.end] for _, b in some]
            deeper = self._encode(held, [row for row, _ in some], parts)
            inside = [(row, node) for row, (_, b) in enumerate(some) for node in b.below]
            self._descend(rows, inside, deeper, on_scores)

        def score(some: Sequence[tuple[int, int]]) -> None:
            parts = [rows[i].tokens[depth[row] :] for row, i in some]
            found = self._score(held, [row for row, _ in some], parts, [rows[i] for _, i in some])
            on_scores([(i, scores) for (_, i), scores in zip(some, found, strict=True)])

        def score_beside(some: Sequence[tuple[int, list[int]]]) -> None:
            parts = [[rows[i].tokens[depth[row] :] for i in pack] for row, pack in some]
            asked = [i for _, pack in some for i in pack]
            found = self._score_beside(
                held, [row for row, _ in some], parts, [rows[i] for i in asked]
            )
            on_scores(list(zip(asked, found, strict=True)))

        branches = [(row, b) for row, b in nodes if isinstance(b, Branch)]
        self._in_batches(branches, lambda job: job[1].end - job[1].start, encode, even=True)
        leaves = [(row, i) for row, i in nodes if not isinstance(i, Branch)]
        if held is not None and self._beside:
            packs = list(_packs(leaves, left))
            leaves = [(row, pack[0]) for row, pack in packs if len(pack) == 1]
            packs = [(row, pack) for row, pack in packs if len(pack) > 1]
            self._in_batches(packs, lambda job: sum(left(job[0], i) for i in job[1]), score_beside)
        self._in_batches(leaves, lambda job: left(*job), score)

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

    @functools.cached_property
    def _pass(self) -> int:
        """What a pass costs besides its tokens, in tokens."""
        return fixed_cost(self.model.device, plain=self._plain)

    @functools.cached_property
    def _beside(self) -> bool:
        """Whether continuations of one beginning can stand in one row."""
        return self._plain and beside.understands(self.model)

    def _in_batches(
        self,
        jobs: list[Any],
        length: Callable[[Any], int],
        run: Callable[[list[Any]], None],
        *,
        even: bool = False,
    ) -> None:
        """Run jobs, longest first; `even`: they are to be continued, behind their padding."""
        jobs = sorted(jobs, key=length, reverse=True)
        alike = [jobs]
        if even and not self._hides_padding:
            alike = [list(some) for _, some in itertools.groupby(jobs, length)]
        for left in alike:
            while left:
                plan = batches(
                    [length(job) for job in left],
                    most=self.batch_size,
                    # What continues a batch's rows are passes of its own.
                    fixed=self._pass * (3 if even else 1),
                )
                for at in plan:
                    try:
                        run(left[at])
                    except RuntimeError as error:
                        if not self.halve(error, at.stop - at.start):
                            raise
                        left = left[at.start :]
                        break
                else:
                    left = []

    def halve(self, error: RuntimeError, rows: int) -> bool:
        """Whether `rows` rows were too many and fewer may be tried: memory ran out.

        Raises `UsageError` if memory ran out and no fewer may be tried.
        """
        if not should_reduce_batch_size(error):
            return False
        if rows == 1:
            raise UsageError(
                "memory ran out with one row at once; shorter inputs (--max-length N), a narrower "
                "--dtype or another --device may fit"
            ) from error
        if not self.shrink:
            raise UsageError(
                f"memory ran out with {rows} rows at once; try --batch-size {rows // 2}, or auto, "
                "which halves it until it fits"
            ) from error
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

    def _score_beside(
        self, held: _Held, of: list[int], parts: list[list[tuple[int, ...]]], rows: list[Row]
    ) -> list[Scores]:
        """Scores of `rows`, several of which stand beside each other in each row of the pass."""
        mask, positions = beside.masked(held.real[of], [[len(p) for p in row] for row in parts])
        columns, device = positions.shape[1], self.model.device
        flat = [[token for part in row for token in part] for row in parts]
        self.read += sum(map(len, flat))
        logits = self.model(
            input_ids=torch.tensor([[*p, *[0] * (columns - len(p))] for p in flat], device=device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            past_key_values=snapshot(held.cache, torch.tensor(of)),
            use_cache=True,
        ).logits
        found = []
        for i, row in enumerate(parts):
            end = 0
            for part in row:
                end += len(part)
                asked = rows[len(found)]
                found.append(Scores([], [], {}))
                own = part[len(part) - asked.scored + 1 :]
                self._read(logits[i, end - asked.scored : end], own, asked.lasts, found[-1])
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
        self.read += sum(map(len, parts))
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
        device = self.model.device
        ends = {*range(width, columns, width), columns}
        if self.cached and not self._plain:
            ends.add(self._unpadded(told, past.shape[1]))
        for start, end in itertools.pairwise(sorted({0, *ends})):
            seen = past.shape[1] + end
            padded = not bool(told[:, :seen].all())
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

    def _unpadded(self, mask: Tensor, past: int) -> int:
        """How many new columns are real in all rows, if reading them apart is worth a pass.

        A mask takes a model with a recurrent state about a seventh of its time.
        """
        if mask.all():
            return 0
        columns = int(mask.all(0).long().cumprod(0).sum()) - past
        worth = columns * len(mask) >= 16 * self._pass
        return columns if columns > 0 and worth else 0


def _packs(
    leaves: Sequence[tuple[int, int]], length: Callable[[int, int], int]
) -> Iterator[tuple[int, list[int]]]:
    """Requests behind each row of what is held, in packs that stand beside each other."""
    behind = defaultdict(list)
    for row, i in leaves:
        behind[row].append(i)
    for row, some in behind.items():
        for pack in beside.packs([length(row, i) for i in some]):
            yield row, [some[n] for n in pack]
