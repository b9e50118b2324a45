"""Keys and values of a looped model: one slot per executed layer, preallocated by position.

Slots are numbered as in the released code: prelude layer i is i, core layer j at kept recurrence p
is P + C p + j, coda layer i is -(i + 1). A slot is a pair of tensors [B, capacity + 1, Hk, D]
written in place by (row, position); the last column takes what unused places write and is never
read. Nothing is concatenated: a longer text doubles the capacity once in a while.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from transformers import Cache

from ..errors import UsageError
from .placement import Placement, additive
from .sharing import Sharing

_COMPLETE = torch.iinfo(torch.long).max  # recurrences of a token of the current pass
_START = 64  # columns allocated when nobody said how long the text will be


class RecurrentDepthCache(Cache):
    """The cache of `prelude`, `core` and `coda` layers; rows may have different lengths.

    - `sharing`: a `Sharing`, a budget of recurrences, None (keep all) or a released name such as
      "latest-m4-compress-s4".
    - `max_length`: columns to allocate at once; more are added when they are needed.

    Works in transformers' `generate` (batches, beams, roll-back) and in the looped interface.
    Attributes: `lengths` [B] int64 on the CPU, tokens of each row; `slots`, number -> (K, V).
    """

    def __init__(
        self,
        *,
        prelude: int,
        core: int,
        coda: int,
        sharing: Sharing | str | int | None = None,
        max_length: int | None = None,
    ) -> None:
        super().__init__(layers=[])
        if max_length is not None and max_length < 1:
            raise UsageError(f"max_length={max_length} must be at least 1 token")
        self.prelude, self.core, self.coda = prelude, core, coda
        self.sharing = Sharing.of(sharing, core)
        self.slots: dict[int, tuple[Tensor, Tensor]] = {}
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.capacity = max_length or _START
        # how many kept recurrences each token has, where tokens can differ
        self.tracks_depth = self.sharing.kept != 1 and self.sharing.merge is None
        self._depth = torch.zeros(0, self.capacity + 1, dtype=torch.long)
        self._columns = 0
        self._last: tuple[Tensor, int, CachedPlacement] | None = None

    def place(
        self,
        positions: Tensor,
        *,
        angles: Tensor | None = None,
        device: torch.device | None = None,
        packed: bool = False,
    ) -> CachedPlacement:
        """The placement of tokens at `positions` [B, W] (-1 = unused), which become part of rows.

        The same tensor object gives the same placement as long as the cache is not trimmed,
        reordered or extended elsewhere, so passing it again costs nothing.
        - `angles`: [B or 1, W] positions for rotary embedding where they differ.
        - `device`: where the tokens are computed; default that of `positions`.
        - `packed`: the layers leave unused places out, see `Placement`.

        Raises `UsageError` if a row would get a gap or the number of rows differs.
        """
        version = 0 if positions.is_inference() else positions._version
        if self._last is not None and self._last[0] is positions and self._last[1] == version:
            return self._last[2]
        where = positions.cpu()
        self._fit(where)
        device = device or positions.device
        placed = CachedPlacement(self, where, device, angles=angles, packed=packed)
        self.lengths = torch.maximum(self.lengths, where.amax(1) + 1)
        self._columns = max(self._columns, int(self.lengths.max()))
        self._last = (positions, version, placed)
        return placed

    def _fit(self, where: Tensor) -> None:
        """Rows for a new cache, columns for these positions, no gaps."""
        B = len(where)
        if not len(self.lengths):
            self.lengths = torch.zeros(B, dtype=torch.long)
            self._depth = torch.zeros(B, self.capacity + 1, dtype=torch.long)
        if len(self.lengths) != B:
            raise UsageError(
                f"positions have {B} rows and the cache {len(self.lengths)}: give one row per "
                "sequence, with -1 in unused places"
            )
        first = where.masked_fill(where < 0, torch.iinfo(where.dtype).max).amin(1)
        if gaps := ((first > self.lengths) & (where.amax(1) >= 0)).nonzero().flatten().tolist():
            raise UsageError(
                f"row {gaps[0]} continues at position {int(first[gaps[0]])}, but the cache holds "
                f"{int(self.lengths[gaps[0]])} of its tokens; give the tokens between"
            )
        if (needed := int(where.max()) + 1) > self.capacity:
            self._grow(max(needed, 2 * self.capacity))

    def _grow(self, capacity: int) -> None:
        old, self.capacity = self.capacity, capacity

        def larger(x: Tensor) -> Tensor:
            new = x.new_zeros(len(x), capacity + 1, *x.shape[2:])
            new[:, :old] = x[:, :old]
            return new

        self.slots = {i: (larger(k), larger(v)) for i, (k, v) in self.slots.items()}
        self._depth = larger(self._depth)

    def slot(self, part: str, layer: int, place: int = 0) -> int:
        """Number of the slot of a layer; `place` is the kept recurrence of a core layer."""
        if part == "coda":
            return -(layer + 1)
        return layer if part == "prelude" else self.prelude + self._core_slot(place, layer)

    def _core_slot(self, place: int, layer: int) -> int:
        return self.sharing.slot(place, layer, self.core)

    def trim(self, length: int | Tensor) -> None:
        """Forget tokens at positions >= `length`, one number or [B]; memory stays allocated."""
        wanted = torch.as_tensor(length).cpu()
        if (wanted < 0).any():
            raise UsageError(f"cannot trim to {int(wanted.min())} tokens: at least 0")
        before, self.lengths = self.lengths, torch.minimum(self.lengths, wanted)
        if len(before):
            self._columns -= int((before - self.lengths).min())
        if self.tracks_depth:
            forgotten = torch.arange(self._depth.shape[1]) >= self.lengths[:, None]
            self._depth.masked_fill_(forgotten, 0)
        self._last = None

    def select(self, rows: Tensor) -> None:
        """Keep these rows in this order; a row may be named several times."""
        self.slots = {
            i: tuple(x.index_select(0, rows.to(x.device)) for x in pair)
            for i, pair in self.slots.items()
        }
        self.lengths, self._depth = self.lengths[rows.cpu()], self._depth[rows.cpu()]
        self._last = None

    def depth(self, row: int) -> Tensor:
        """[length] kept recurrences of each token of a row (where tokens can differ)."""
        return self._depth[row, : int(self.lengths[row])]

    @property
    def nbytes(self) -> int:
        """Bytes allocated for keys and values."""
        return sum(x.nbytes for pair in self.slots.values() for x in pair)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token of one row takes in the slots in use."""
        return sum(x[0, 0].nbytes for pair in self.slots.values() for x in pair)

    # What transformers' `generate` asks of a cache. It counts columns, padding included.

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far: tokens of the longest row and its padding."""
        return self._columns

    def count_columns(self, columns: int) -> None:
        """Tell the cache how many columns its tokens took in a padded batch."""
        self._columns = columns

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row (transformers counts them from the end)."""
        if len(self.lengths):
            self.trim((self.lengths - abs(tokens_to_remove)).clamp(min=0))

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.select(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.select(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.select(torch.arange(len(self.lengths)).repeat_interleave(repeats))

    def reset(self) -> None:
        self.trim(0)
        self._columns = 0

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return -1  # it grows

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        return self._columns + query_length, 0

    def update(self, *args: object, **kwargs: object) -> tuple[Tensor, Tensor]:
        raise UsageError(
            "a looped model's cache is written through its placement, not layer by layer; "
            "use it with a looped model only"
        )

    @property
    def batch_size(self) -> int:
        return len(self.lengths) or -1

    @property
    def is_initialized(self) -> bool:
        return bool(self.slots)

    @property
    def is_croppable(self) -> bool:
        return True

    @property
    def is_compileable(self) -> bool:
        return False

    def __len__(self) -> int:
        return len(self.slots)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lengths={self.lengths.tolist()}, {self.sharing})"


class _View(NamedTuple):
    """One slot as one placement uses it: `k`, `v` to read, the flat forms to write."""

    k: Tensor  # [B, columns seen, Hk, D]
    v: Tensor
    k_flat: Tensor  # [B * (capacity + 1), Hk, D]
    v_flat: Tensor


class CachedPlacement(Placement):
    """Tokens that also see what the cache holds of their rows. Made by `place`."""

    def __init__(
        self,
        cache: RecurrentDepthCache,
        where: Tensor,
        device: torch.device,
        *,
        angles: Tensor | None,
        packed: bool = False,
    ) -> None:
        super().__init__(where, device, angles=angles, packed=packed)
        self.cache = cache
        self.alone = not cache.lengths.any()
        self.columns = max(int(where.max()) + 1, 1)  # of the keys that are seen
        rows = torch.arange(len(where))[:, None] * (cache.capacity + 1)
        at = where.where(where >= 0, torch.tensor(cache.capacity))
        self._at = (rows + at).flatten()  # in a slot with rows and columns flattened
        if self._used is not None:
            self._at = self._at[where.flatten() >= 0]
        self._index = self._at.to(device)
        self._slots: dict[tuple[str, int, int], _View] = {}
        if cache.tracks_depth and not self.alone:
            self._measure_depth()

    def extend(
        self, k: Tensor, v: Tensor, part: str, layer: int, step: int = 0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        cache = self.cache
        place = cache.sharing.place(step) if part == "core" else 0
        slot = self._slots.get((part, layer, place)) or self._open(k, v, part, layer, place)
        k_new, v_new = k.flatten(0, 1), v.flatten(0, 1)
        if k.requires_grad or k.dtype != slot.k_flat.dtype:
            slot.k_flat.index_copy_(0, self._index, k_new.detach().to(slot.k_flat.dtype))
            slot.v_flat.index_copy_(0, self._index, v_new.detach().to(slot.v_flat.dtype))
        else:
            slot.k_flat.index_copy_(0, self._index, k_new)
            slot.v_flat.index_copy_(0, self._index, v_new)
        if part == "core" and layer == 0 and cache.tracks_depth:
            kept = step + 1 if cache.sharing.kept is None else min(step + 1, cache.sharing.kept)
            cache._depth.view(-1)[self._at] = kept
        if self.alone:
            return self.spread(k), self.spread(v), self.bias(k.dtype)
        if part == "core" and cache.tracks_depth and place >= self._shallowest:
            return self._complete(slot, layer, place)
        if k.requires_grad and torch.is_grad_enabled():
            return (
                self._with_gradient(slot.k, slot.k_flat, k_new),
                self._with_gradient(slot.v, slot.v_flat, v_new),
                self.bias(k.dtype),
            )
        return slot.k, slot.v, self.bias(k.dtype)

    def _open(self, k: Tensor, v: Tensor, part: str, layer: int, place: int) -> _View:
        """The slot of a layer, allocated at the first use; what is seen of it by these tokens."""
        cache = self.cache
        number = cache.slot(part, layer, place)
        if number not in cache.slots:
            rows, columns = cache._depth.shape
            cache.slots[number] = tuple(x.new_zeros(rows, columns, *x.shape[2:]) for x in (k, v))
        keys, values = cache.slots[number]
        view = _View(
            keys[:, : self.columns],
            values[:, : self.columns],
            keys.flatten(0, 1),
            values.flatten(0, 1),
        )
        self._slots[part, layer, place] = view
        return view

    def _with_gradient(self, seen: Tensor, flat: Tensor, new: Tensor) -> Tensor:
        """A copy of what is seen in which these tokens' own part carries gradient."""
        whole = flat.index_copy(0, self._index, new.to(flat.dtype))
        return whole.unflatten(0, (len(seen), -1))[:, : self.columns]

    def _keys_at(self) -> Tensor:
        return super()._keys_at() if self.alone else torch.arange(self.columns)[None, None]

    def _visible(self) -> Tensor | None:
        if self.alone:
            return super()._visible()
        if self.width == 1 and bool((self.where == self.columns - 1).all()):
            return None
        at = self.where.clamp(min=0).to(self.device)  # an unused place sees column 0
        return (torch.arange(self.columns, device=self.device) <= at[..., None])[:, None]

    def _measure_depth(self) -> None:
        """Kept recurrences of the tokens seen; those of this pass count as complete."""
        depth = self.cache._depth.clone()
        depth.view(-1)[self._at] = _COMPLETE
        depth = depth[:, : self.columns]
        unseen = torch.arange(self.columns) > self.where.amax(1, keepdim=True)
        self._depths = depth
        self._shallowest = int(depth.masked_fill(unseen, _COMPLETE).min())

    def _complete(self, slot: _View, layer: int, place: int) -> tuple[Tensor, Tensor, Tensor]:
        """What stands in for tokens that stopped before this recurrence."""
        cache, lookup = self.cache, self.cache.sharing.lookup
        keys, values, bias = slot.k, slot.v, self.bias(slot.k.dtype)
        if lookup == "skip":
            has = (self._depths > place)[:, None, None].to(self.device)
            hidden = additive(has, keys.dtype)
            return keys, values, hidden if bias is None else bias + hidden
        deepest = self._depths - 1
        current = self._depths == _COMPLETE
        if lookup == "latest":
            deepest = deepest.clamp(max=place)
        source = deepest.masked_fill(current, place)
        for other in source.unique().tolist():
            if other in (place, -1):
                continue
            here = (source == other)[..., None, None].to(self.device)
            pair = cache.slots[cache.slot("core", layer, other)]
            keys = torch.where(here, pair[0][:, : self.columns], keys)
            values = torch.where(here, pair[1][:, : self.columns], values)
        return keys, values, bias
