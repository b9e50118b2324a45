"""Rows in which one sentence of the training text is repeated until the row is full.

A row is a prefix, then one unit (a sentence, a line) over and over, as a model that loops writes.
With it comes the index of each target in the copy before, which is all that `ditto` has to know.
"""

from __future__ import annotations

import bisect
import itertools
import random
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..recipe import DataSettings, RepetitionSettings
from .packing import bos_of

_COPIES = 3  # a unit must fit this often: with fewer there is hardly a term
_BATCH = 256  # documents tokenised in one call
# A sentence ends behind its mark and the quotes and brackets that close there; blanks and newlines
# begin what follows, as they begin its first token in sub-word vocabularies.
_SENTENCE = re.compile(
    r"[.!?…]+(?=\s)"
    r"|[.!?…]+[\"'”’)\]]+(?=\s+[\"'“‘(\[]*[A-Z0-9À-ÖØ-Þ])"  # not in: "Hi!" said the fox
    r"|[。！？]+[」』”’]*"
    r"|(?=\n)"
)
_ENDS = {"sentence": _SENTENCE, "line": re.compile(r"(?=\n)")}
_ABBREVIATIONS = ("Mr.", "Mrs.", "Ms.", "Dr.", "St.", "Prof.", "e.g.", "i.e.", "vs.", "cf.", "No.")

# First token of the prefix, first token of the unit, first token behind it.
Span = tuple[int, int, int]


def repeats(step: int, *, seed: int, share: float) -> bool:
    """Whether optimizer step `step` is one on repeated rows: the same in every process."""
    return random.Random(f"{seed}/{step}/repeats").random() < share


@dataclass(frozen=True, eq=False)
class RepeatedRows:
    """Every unit of a text, each the seed of one row.

    - `tokens`: `[N]` int32, documents end to end.
    - `spans`: `[U, 3]` int64, a `Span` into `tokens` for each unit.
    - `seq_len`: tokens per row.
    - `settings`: how they were made, and what training is to do with them.
    - `begin`: tokens before each prefix (bos), or none.
    """

    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]
    seq_len: int
    settings: RepetitionSettings
    begin: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def identity(self) -> dict[str, Any]:
        """What must stay the same between a run and its continuation."""
        return {
            **{f"repetition.{k}": v for k, v in self.settings.model_dump(mode="json").items()},
            "repeated text (checksum)": zlib.crc32(self.spans, zlib.crc32(self.tokens)),
        }

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """Rows as int64 CPU tensors, each `[B, T]`.

        - `input_ids`, and `targets`: the token that follows each, none missing.
        - `previous`: index of each target in the copy before; -1 in prefix and first copy.
        """
        rows, previous = [], []
        for prefix, unit, end in self.spans[list(indices)].tolist():
            before = [*self.begin, *self.tokens[prefix:unit]]
            rows.append(fill(before, self.tokens[unit:end], self.seq_len + 1))
            previous.append(previous_copies(len(before), end - unit, self.seq_len))
        ids = torch.from_numpy(np.stack(rows))
        return {
            "input_ids": ids[:, :-1],
            "targets": ids[:, 1:],
            "previous": torch.from_numpy(np.stack(previous)),
        }


def build(
    texts: Iterable[str],
    text: DataSettings,
    settings: RepetitionSettings,
    tokenizer: PreTrainedTokenizerBase,
    tokens: int,
) -> RepeatedRows:
    """All units in the first `tokens` tokens of some documents.

    Units are `settings.unit`: sentences, lines, or `mark`, the published construction (see
    `between_marks`). The prefix of a sentence or line is what stands before it in its document,
    whole units of up to `settings.context` tokens, at least one, as far as three copies fit behind.
    The text is tokenised as it stands and repeated as tokens.

    `text` gives the source's name, the row length and whether documents begin with bos.

    Raises what reading the texts raises, and `InputError` for a tokenizer that does not tell where
    its tokens begin, or text without a unit of two tokens that fits three times.
    """
    if settings.unit in _ENDS and not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which characters its tokens stand for, so "
            f"no {settings.unit} can be cut out; use a tokenizer.json, or repetition.unit=mark"
        )
    begin = () if settings.unit == "mark" else tuple(bos_of(tokenizer, text))
    room = text.seq_len + 1 - len(begin)
    pieces: list[NDArray[np.int32]] = []
    spans: list[Span] = []
    at = 0
    for ids, found in _documents(iter(texts), settings, tokenizer, room):
        ids = ids[: tokens - at]
        pieces.append(np.array(ids, np.int32))
        spans += [(at + a, at + b, at + c) for a, b, c in found if c <= len(ids)]
        at += len(ids)
        if at >= tokens:
            break
    if not spans:
        raise InputError(
            f"{text.source} holds no {settings.unit} of at least 2 tokens that fits {_COPIES} "
            f"times into a row of {text.seq_len}; use another repetition.unit or a larger seq_len"
        )
    return RepeatedRows(np.concatenate(pieces), np.array(spans), text.seq_len, settings, begin)


def released(
    rows: Sequence[Sequence[int]], end: int, draw: Callable[[int, int], int]
) -> list[tuple[NDArray[np.int64], Span]] | None:
    """The published construction: each row of T tokens becomes one of T + 1 that repeats.

    Args:
        rows: token ids.
        end: the token that ends sentences.
        draw: a number from `[low, high]`; asked once per row, in order.

    Returns the rows and which of their tokens were used, or None if one has fewer than three end
    marks: the published training then makes the whole batch an ordinary one.
    """
    choices = [between_marks(row, end) for row in rows]
    if not all(choices):
        return None
    spans = [found[draw(1, len(found)) - 1] for found in choices]
    return [
        (fill(row[prefix:unit], row[unit:after], len(row) + 1), (prefix, unit, after))
        for row, (prefix, unit, after) in zip(rows, spans, strict=True)
    ]


def between_marks(ids: Sequence[int], end: int) -> list[Span]:
    """Units from one end mark to just before the next, so that each begins with a mark.

    The prefix is the sentence before without its mark; units before the second mark have none.
    """
    marks = [i for i, token in enumerate(ids) if token == end]
    return [
        (before + 1, mark, after)
        for before, mark, after in zip(marks, marks[1:], marks[2:], strict=False)
    ]


def fill(prefix: Sequence[int], unit: Sequence[int], length: int) -> NDArray[np.int64]:
    """`prefix`, then `unit` over and over: `length` tokens."""
    copies = -(-max(0, length - len(prefix)) // len(unit))
    return np.concatenate([prefix, np.tile(unit, copies)])[:length].astype(np.int64)


def previous_copies(prefix: int, unit: int, length: int) -> NDArray[np.int64]:
    """`[length]`: index of each target one copy earlier, -1 where nothing is penalised.

    Targets are shifted by one: the first with a copy before it is the second copy's second token.
    """
    index = np.arange(length)
    return np.where(index >= prefix + unit, index - unit, -1)


def cut(text: str, unit: str) -> list[int]:
    """Where the sentences or lines of a text begin, and its length."""
    ends = (m.end() for m in _ENDS[unit].finditer(text))
    kept = (e for e in ends if not text.endswith(_ABBREVIATIONS, 0, e) or unit == "line")
    return sorted({0, *kept, len(text)})


def _documents(
    texts: Iterator[str],
    settings: RepetitionSettings,
    tokenizer: PreTrainedTokenizerBase,
    room: int,
) -> Iterator[tuple[list[int], list[Span]]]:
    """Token ids and units of each document."""
    offsets = settings.unit in _ENDS
    while some := list(islice(texts, _BATCH)):
        encoded = tokenizer(
            some,
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=offsets,
            verbose=False,
        )
        for index, document in enumerate(some):
            ids = encoded["input_ids"][index]
            if offsets:
                starts = [start for start, _ in encoded["offset_mapping"][index]]
                yield ids, list(_units(document, starts, settings, room))
            else:
                found = between_marks(ids, tokenizer("a.", add_special_tokens=False).input_ids[-1])
                yield ids, [span for span in found if _fits(span, room)]


def _units(
    document: str, starts: list[int], settings: RepetitionSettings, room: int
) -> Iterator[Span]:
    """Spans of one document whose tokens begin at the characters `starts`."""
    places = cut(document, settings.unit)
    # The token that begins at or after a boundary: one that straddles it stays with what it ends.
    edges = [bisect.bisect_left(starts, place) for place in places]
    for number, count in itertools.product(range(len(places) - 1), range(1, settings.units + 1)):
        if (
            number + count >= len(places)
            or not document[places[number] : places[number + 1]].strip()
        ):
            continue
        unit, end = edges[number], edges[number + count]
        free = min(settings.context, room - _COPIES * (end - unit))
        prefix = min(bisect.bisect_left(edges, unit - free), max(0, number - 1))
        if _fits((edges[prefix], unit, end), room):
            yield edges[prefix], unit, end


def _fits(span: Span, room: int) -> bool:
    prefix, unit, end = span
    return end - unit >= 2 and unit - prefix + _COPIES * (end - unit) <= room
