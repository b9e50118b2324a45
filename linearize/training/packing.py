"""Documents to rows of equal length; no token is thrown away.

With boundaries, documents that fit into a row are never cut, and rows are filled up with padding.
Without, documents are laid end to end and cut wherever a row ends. Where documents start is kept,
so that models can be told (`position_ids` restart there) and no target crosses it.
"""

from __future__ import annotations

import bisect
import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..recipe import DataSettings
from . import data

IGNORED = -100  # target of a position that has none: `ignore_index` of cross entropy
PAD = -1  # in `Rows.tokens`: no token
_CHUNK = 2**22  # characters tokenised in one call: keeps a fast tokenizer's threads busy
_LONGEST = 16  # characters per token; no text of any language comes near


@dataclass(frozen=True, eq=False)
class Rows:
    """A packed corpus, cut into rows of `seq_len` tokens.

    - `tokens`: `[N]` int32, all documents end to end; -1 is padding.
    - `starts`: `[D]` int64, ascending; index of each document's first token. The first is 0.
    - `seq_len`: tokens per row.
    - `boundaries`: whether batches carry `position_ids`, without which documents that share a row
      see each other.
    - `pad`: token that stands for padding and fills the end of the last row. It gets no target and
      is seen by nothing before it: its choice does not matter.
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    seq_len: int
    boundaries: bool = True
    pad: int = 0

    def __len__(self) -> int:
        return -(-len(self.tokens) // self.seq_len)

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Rows as int64 CPU tensors, each `[B, T]`.

        - `input_ids`
        - `targets`: the token that follows each position; -100 where there is none (at the end of
          a row, or where the next token starts another document).
        - `position_ids` (with boundaries): place in the document, counted from the row's start for
          a document that began in an earlier row. The padding counts as a document.

        Raises `IndexError` for an index outside `[0, len(self))`.
        """
        rows = np.fromiter(indices, dtype=np.int64)
        if rows.size and not (rows.min() >= 0 and rows.max() < len(self)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} asked for; there are {len(self)}")
        total = len(self.tokens)
        first = rows[:, None] * self.seq_len
        place = first + np.arange(self.seq_len)  # [B, T], index into tokens
        found = self.tokens[np.minimum(place, total - 1)]
        real = (place < total) & (found != PAD)
        ids = np.where(real, found, self.pad)
        edges = np.append(self.starts, total)
        document = np.searchsorted(edges, place, side="right") - 1
        follows = (document[:, 1:] == document[:, :-1]) & real[:, 1:]
        targets = np.full_like(ids, IGNORED)
        targets[:, :-1][follows] = ids[:, 1:][follows]
        found = {"input_ids": ids, "targets": targets}
        if self.boundaries:
            found["position_ids"] = place - np.maximum(edges[document], first)
        return {name: torch.from_numpy(array.astype(np.int64)) for name, array in found.items()}


def row_at(i: int, n_rows: int, seed: int) -> int:
    """The i-th row of a run: every row once per epoch, in an order drawn from (seed, epoch).

    Depends on nothing else, so that a run resumes from a counter.
    """
    epoch, place = divmod(i, n_rows)
    return int(_order(n_rows, seed, epoch)[place])


def build_rows(
    settings: DataSettings, tokenizer: PreTrainedTokenizerBase, train_tokens: int
) -> tuple[Rows, Rows, dict[str, Any]]:
    """Rows to train on and rows held out, reading no more text than the budget needs.

    Args:
        settings: source, held-out split, row length.
        tokenizer: of the base; its own special tokens are not added, only bos and eos as
            `settings` say and where it has them.
        train_tokens: tokens the run sees. Fewer are returned where there is less text (rows then
            repeat), or up to one row more, to fill the last one.

    Returns:
        Training rows, held-out rows (of at most `settings.eval_tokens` tokens) and
        `{"source", "documents", "train_tokens", "eval_tokens"}`, the counts of what was packed.
        Every n-th document is held out; where the text ends before the n-th, its end is.

    Raises `UsageError` and `InputError` as `data.documents` does, and `InputError` for fewer than
    four tokens of text.
    """
    encode = functools.partial(_encode, tokenizer, settings)
    row = settings.seq_len
    budget = max(1, -(-train_tokens // row)) * row
    # Room for a held-out end, in case no document is held out.
    spare = min(settings.eval_tokens, round(budget * settings.eval_fraction) + 2)
    train, held = _Flat(budget + spare), _Flat(settings.eval_tokens)
    _fill({False: train, True: held}, data.split(settings), encode)
    if settings.eval_source:
        other = settings.model_copy(update={"source": settings.eval_source})
        _fill({False: held}, ((False, text) for text in data.documents(other)), encode)
    tokens, starts = train.joined()
    held_tokens, held_starts = held.joined()
    if not len(held_tokens):
        cut = min(settings.eval_tokens, max(2, round(len(tokens) * settings.eval_fraction)))
        tokens, held_tokens = tokens[:-cut], tokens[-cut:]
        held_starts = np.append(0, starts[starts > len(tokens)] - len(tokens))
    tokens, held_tokens = tokens[:budget], held_tokens[: settings.eval_tokens]
    if min(len(tokens), len(held_tokens)) < 2:
        raise InputError(
            f"{settings.source} holds {len(tokens)} tokens to train on and {len(held_tokens)} held "
            "out; at least 2 of each are needed: give more text"
        )
    build = functools.partial(
        Rows, seq_len=row, boundaries=settings.boundaries, pad=tokenizer.pad_token_id or 0
    )
    starts = starts[starts < len(tokens)]
    held_starts = held_starts[held_starts < len(held_tokens)]
    info = {
        "source": settings.source,
        "documents": len(starts),
        "train_tokens": len(tokens),
        "eval_tokens": len(held_tokens),
    }
    if settings.boundaries:
        bos = bos_of(tokenizer, settings)
        tokens, starts = whole(tokens, starts, row, bos)
        held_tokens, held_starts = whole(held_tokens, held_starts, row, bos)
    return build(tokens, starts), build(held_tokens, held_starts), info


def beginnings(settings: DataSettings, tokenizer: PreTrainedTokenizerBase) -> Rows:
    """Held-out documents, each from its beginning to where it would not fit a row.

    `build_rows` cuts longer ones into windows, most of which begin in the middle of a document:
    training gets a model used to that, which says nothing of how it reads documents. At most
    `settings.eval_tokens` tokens. Raises `InputError` where no document is held out.
    """
    row, bos = settings.seq_len, bos_of(tokenizer, settings)
    held = _Flat(settings.eval_tokens)

    def encode(texts: list[str]) -> Iterator[NDArray[np.int32]]:
        return (ids[:row] for ids in _encode(tokenizer, settings, texts))

    _fill({True: held}, ((True, text) for text in data.held_out(settings)), encode)
    tokens, starts = held.joined()
    tokens = tokens[: settings.eval_tokens]
    starts = starts[starts < len(tokens)]
    if len(tokens) < 2:
        raise InputError(f"no document of {settings.source} is held out: give --eval-data")
    return Rows(*whole(tokens, starts, row, bos), row, pad=tokenizer.pad_token_id or 0)


def bos_of(tokenizer: PreTrainedTokenizerBase, settings: DataSettings) -> list[int]:
    """What each document begins with: one token, or none."""
    return [tokenizer.bos_token_id] if settings.bos and tokenizer.bos_token_id is not None else []


def eos_of(tokenizer: PreTrainedTokenizerBase, settings: DataSettings) -> list[int]:
    """What a document ends with: the eos token, or nothing."""
    return [tokenizer.eos_token_id] if settings.eos and tokenizer.eos_token_id is not None else []


def whole(
    tokens: NDArray[np.int32], starts: NDArray[np.int64], row: int, bos: list[int]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Lay documents into rows so that those that fit are never cut: best fit, longest first.

    Longer ones become windows of one row, each begun with bos. Rows are filled up with `PAD`,
    which counts as a document. Source: Ding et al., "Fewer Truncations Improve Language Modeling"
    (arXiv 2404.10830).
    """
    pieces = []
    for document in np.split(tokens, starts[1:]):
        first, rest = document[:row], document[row:]
        step = row - len(bos)
        windows = (rest[at : at + step] for at in range(0, len(rest), step))
        pieces += [first, *(np.append(np.array(bos, np.int32), w) for w in windows)]
    pieces.sort(key=len, reverse=True)  # stable: equal lengths stay in order
    rows: list[list[NDArray[np.int32]]] = []
    room: list[tuple[int, int]] = []  # (free places, row), ascending
    for piece in pieces:
        at = bisect.bisect_left(room, (len(piece), 0))
        if at < len(room):
            free, index = room.pop(at)
        else:
            free, index = row, len(rows)
            rows.append([])
        rows[index].append(piece)
        bisect.insort(room, (free - len(piece), index))
    left = {index: free for free, index in room}
    laid = [
        piece
        for index, held in enumerate(rows)
        for piece in (*held, np.full(left[index], PAD, np.int32))
        if len(piece)
    ]
    return np.concatenate(laid), np.cumsum([0, *map(len, laid[:-1])], dtype=np.int64)


class _Flat:
    """Token arrays laid end to end, until `wanted` tokens are there."""

    def __init__(self, wanted: int) -> None:
        self.wanted, self.count = wanted, 0
        self.pieces: list[NDArray[np.int32]] = []

    @property
    def missing(self) -> int:
        return max(0, self.wanted - self.count)

    def add(self, piece: NDArray[np.int32]) -> None:
        self.pieces.append(piece)
        self.count += len(piece)

    def joined(self) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
        """All tokens, and where each piece starts."""
        ends = np.cumsum([0, *(len(piece) for piece in self.pieces)], dtype=np.int64)
        return np.concatenate([np.empty(0, np.int32), *self.pieces]), ends[:-1]


def _fill(flats: dict[bool, _Flat], flagged: Iterable[tuple[bool, str]], encode: Any) -> None:
    """Tokenise documents into the flat of their flag until all flats have what they want."""
    waiting: dict[bool, list[str]] = {flag: [] for flag in flats}
    size = dict.fromkeys(flats, 0)
    for flag, text in flagged:
        flat = flats[flag]
        if flat.missing:
            waiting[flag].append(text[: _LONGEST * flat.missing])
            size[flag] += len(waiting[flag][-1])
            if size[flag] >= min(_CHUNK, 3 * flat.missing):  # about 4 characters per token
                _drain(flat, waiting[flag], encode)
                size[flag] = 0
        if not any(flat.missing for flat in flats.values()):
            return
    for flag, flat in flats.items():
        _drain(flat, waiting[flag], encode)


def _drain(flat: _Flat, texts: list[str], encode: Any) -> None:
    for piece in encode(texts):
        flat.add(piece)
    texts.clear()


def _encode(
    tokenizer: PreTrainedTokenizerBase, settings: DataSettings, texts: list[str]
) -> Iterator[NDArray[np.int32]]:
    if not texts:
        return
    bos = bos_of(tokenizer, settings)
    eos = eos_of(tokenizer, settings)
    # Without special tokens, so that none doubles ours. verbose=False: documents are longer than
    # the model's context and get cut into rows, so the warning about that would be noise.
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
    for ids in encoded["input_ids"]:
        if ids:
            yield np.array([*bos, *ids, *eos], dtype=np.int32)


@functools.lru_cache(maxsize=2)
def _order(n_rows: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed % 2**64, epoch)).permutation(n_rows)
