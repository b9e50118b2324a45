"""What each token says, as bytes, for any tokenizer of transformers.

`decode([id])` will not do: it drops leading blanks and breaks characters that are spread over
several tokens. The pieces of the vocabulary themselves are exact once their spelling is known:

- byte-level BPE (GPT-2, Llama 3, Qwen): one printable character per byte;
- SentencePiece (Llama 2, Mistral, Gemma): U+2581 for a blank, `<0x0A>` for single bytes.
"""

from __future__ import annotations

import json
import re
from bisect import bisect_left
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_BLANK = "▁"
_SPACES = b" \t\r\n"
_WORD = re.compile(rb"[A-Za-z0-9_\x80-\xff]")
_made: WeakKeyDictionary[Any, Vocabulary] = WeakKeyDictionary()


class Vocabulary:
    """The bytes of every token; make one with `of`, which keeps it with the tokenizer.

    - `pieces[id]`: bytes of a token; empty for special tokens.
    - `leading_blank`: the tokenizer puts a blank before the first word, which is not text.
    """

    def __init__(self, tokenizer: Any) -> None:
        spelling, self.leading_blank = _spelling(tokenizer)
        special = set(tokenizer.all_special_ids)
        added = {int(i): str(token) for i, token in tokenizer.added_tokens_decoder.items()}
        size = len(tokenizer)
        self.pieces: list[bytes] = []
        for index, piece in enumerate(tokenizer.convert_ids_to_tokens(list(range(size)))):
            if index in special or piece is None:
                self.pieces.append(b"")
            elif index in added:
                self.pieces.append(added[index].encode())
            else:
                self.pieces.append(spelling(piece))
        # Pieces by what follows their leading blanks: (rest, blanks, id), sorted by rest.
        self._words = sorted(
            (rest, piece[: len(piece) - len(rest)], index)
            for index, piece in enumerate(self.pieces)
            if (rest := piece.lstrip(_SPACES))
        )
        self._rests = [rest for rest, *_ in self._words]
        # No token of most tokenizers holds a line's end and the next line's first word.
        self.joins_lines = any(b"\n" in blanks for _, blanks, _ in self._words)
        self._alike: dict[bytes, list[int]] = {}
        for rest, _, index in self._words:
            self._alike.setdefault(rest.rstrip(_SPACES), []).append(index)
        self.starting = lru_cache(maxsize=4096)(self._starting)

    def text(self, ids: list[int]) -> bytes:
        """The bytes of a sequence; ids beyond the tokenizer's own say nothing."""
        size = len(self.pieces)
        return b"".join(self.pieces[i] for i in ids if 0 <= i < size)

    def alike(self, token: int) -> list[int]:
        """Ids of the tokens that say the same but for blanks, that with a blank before it last;
        none for mere blanks.
        """
        piece = self.pieces[token] if 0 <= token < len(self.pieces) else b""
        return self._alike.get(piece.strip(_SPACES), [])

    def _starting(self, word: bytes, width: int | None, column: int | None) -> Tensor:
        """Ids (int64) of the tokens with which `word` may begin.

        After leading blanks a token must be a non-empty beginning of the word (`el` of `elif`), or
        the whole word and then anything that does not continue it (`elif(`, not `elifx`).

        - `width`: how many leading blanks, without a newline among them; None for any number.
        - `column`: how many after the last newline, for tokens that begin with one; None for any.
        """

        def fits(blanks: bytes) -> bool:
            line = blanks.rfind(b"\n")
            wanted, size = (width, len(blanks)) if line < 0 else (column, len(blanks) - line - 1)
            return wanted is None or wanted == size

        inner = _WORD.match(word[-1:]) is not None
        found = {
            index
            for end in range(1, len(word) + 1)
            for rest, blanks, index in self._from(word[:end], exact=end < len(word))
            if fits(blanks) and not (inner and _WORD.match(rest, end))
        }
        return torch.tensor(sorted(found), dtype=torch.int64)

    def _from(self, start: bytes, *, exact: bool) -> Iterator[tuple[bytes, bytes, int]]:
        """Words that begin with `start`, or are it: those come first."""
        for at in range(bisect_left(self._rests, start), len(self._words)):
            rest = self._rests[at]
            if not (rest == start if exact else rest.startswith(start)):
                return
            yield self._words[at]


def of(tokenizer: Any) -> Vocabulary:
    """The tokenizer's vocabulary, made once."""
    if tokenizer not in _made:
        _made[tokenizer] = Vocabulary(tokenizer)
    return _made[tokenizer]


def _spelling(tokenizer: Any) -> tuple[Any, bool]:
    """How pieces are spelt, and whether the first word gets a blank of its own."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else {}
    before = json.dumps(rules.get("pre_tokenizer"))
    text = json.dumps(rules.get("decoder")) + before
    if '"ByteLevel"' in text:
        return _byte_level, '"add_prefix_space": true' in before
    prepends = '"Prepend"' in json.dumps(rules.get("normalizer")) or any(
        f'"prepend_scheme": "{scheme}"' in text for scheme in ("always", "first")
    )
    return _sentencepiece, prepends or backend is None


def _byte_level(piece: str) -> bytes:
    table = _byte_table()
    try:
        return bytes(table[character] for character in piece)
    except KeyError:
        return piece.encode()


def _sentencepiece(piece: str) -> bytes:
    byte = _BYTE.fullmatch(piece)
    return bytes([int(byte[1], 16)]) if byte else piece.replace(_BLANK, " ").encode()


@lru_cache(maxsize=1)
def _byte_table() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 stands for itself, other bytes from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = (byte for byte in range(256) if byte not in printable)
    table = {chr(byte): byte for byte in printable}
    return table | {chr(256 + n): byte for n, byte in enumerate(others)}
