"""A continuation as it grows: tokens in, text that is safe to show out.

- Text is the difference of two decodes over a short tail, prompt included, so that a leading space
  or a character spread over several tokens comes out as in one decode of everything, at constant
  cost per token (the scheme of huggingface/text-generation-inference).
- Text that could still become a stop string is held back until it cannot.
- Two criteria watch the loop: one where a row is a text, one where rows are candidates of a search.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria

TAIL = 8  # prompt tokens decoded together with the first new one; byte fallback needs up to 4


class Continuation:
    """New tokens of one prompt.

    `ids` are the tokens so far (the ending one included), `text` what they say, without special
    tokens and without the stop string; `finish` is None while it grows, then "stop", "eos" or
    what `end` was told.
    """

    def __init__(
        self, prompt: Sequence[int], tokenizer: Any, *, stop: Sequence[str], eos: Collection[int]
    ) -> None:
        self.ids: list[int] = []
        self.text = ""
        self.finish: str | None = None
        self.seconds = 0.0
        self.first_token_seconds: float | None = None
        self.stats: dict[str, Any] = {}
        self._tokenizer, self._stop, self._eos = tokenizer, stop, eos
        self._tail = list(prompt[-TAIL:])
        self._read = len(self._tail)
        self._shown = 0
        self._started = time.perf_counter()

    def add(self, token: int) -> str:
        """Append a token; returns the text that became safe to show."""
        self.ids.append(token)
        self.seconds = time.perf_counter() - self._started
        if token in self._eos:
            self.finish = "eos"
            return self.close()
        self._tail.append(token)
        before = self._decode(self._tail[: self._read])
        after = self._decode(self._tail)
        if len(after) <= len(before) or after.endswith("�"):
            return ""  # the middle of a character
        self._tail, self._read = self._tail[self._read :], len(self._tail) - self._read
        return self._extend(after[len(before) :])

    def end(self, reason: str) -> None:
        """It grows no further, for a reason from outside; an earlier reason stays."""
        self.finish = self.finish or reason

    def close(self) -> str:
        """No more tokens: returns what was held back."""
        left = self._decode(self._tail)[len(self._decode(self._tail[: self._read])) :]
        self._tail = self._tail[: self._read]
        shown = self._extend(left) if left else ""
        rest = self.text[self._shown :]
        self._shown = len(self.text)
        return shown + rest

    def _extend(self, piece: str) -> str:
        # A stop string may begin in text that is held back, never in text already shown.
        self.text += piece
        found = [i for s in self._stop if (i := self.text.find(s, self._shown)) >= 0]
        if found:
            self.finish = "stop"
            self.text = self.text[: min(found)]
            safe = len(self.text)
        else:
            safe = len(self.text) - self._held()
        shown, self._shown = self.text[self._shown : safe], safe
        return shown

    def _held(self) -> int:
        """Length of the longest end of the text that a stop string begins with."""
        ends = (
            n for s in self._stop for n in range(len(s) - 1, 0, -1) if self.text.endswith(s[:n])
        )
        return max(ends, default=0)

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class Watch(StoppingCriteria):
    """Feeds a batch's new tokens to its continuations; a row is done when its continuation is.

    A stopping criterion because transformers hands those to every decoding loop, custom ones
    included, which a streamer does not reach.
    """

    def __init__(
        self,
        rows: Sequence[Continuation],
        prompt_length: int,
        on_text: Callable[[str], None] | None = None,
    ) -> None:
        self.rows = rows
        self.seen = prompt_length
        self.on_text = on_text

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        for row, tokens in zip(self.rows, input_ids[:, self.seen :].tolist(), strict=True):
            self.feed(row, tokens)
            if row.first_token_seconds is None:
                row.first_token_seconds = row.seconds
        self.seen = input_ids.shape[1]
        return torch.tensor([r.finish is not None for r in self.rows], device=input_ids.device)

    def feed(self, row: Continuation, tokens: Sequence[int]) -> None:
        """Add tokens to a row until it is done, and show what may be shown."""
        for token in tokens:
            if row.finish is None:
                self._show(row.add(token))

    def close(self) -> None:
        """The loop has ended: show what rows that ran into the length limit held back."""
        for row in self.rows:
            self._show(row.close())

    def _show(self, piece: str) -> None:
        if piece and self.on_text is not None:
            self.on_text(piece)


class StopStrings(StoppingCriteria):
    """Ends the candidates of a search whose newest token completes a stop string.

    Candidates change places at every step, so nothing is remembered: the last few tokens are read
    again each time.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str], prompt_length: int) -> None:
        self.tokenizer = tokenizer
        self.stop = stop
        self.prompt_length = prompt_length
        self.reach = max(len(s.encode()) for s in stop) + TAIL  # tokens; each says a byte or more

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        first = max(self.prompt_length, input_ids.shape[1] - self.reach)
        return torch.tensor([self._ended(r, first) for r in input_ids.tolist()]).to(
            input_ids.device
        )

    def _ended(self, row: list[int], first: int) -> bool:
        read = Continuation(row[:first], self.tokenizer, stop=self.stop, eos=())
        for token in row[first:]:
            read.add(token)
            if read.finish is not None:
                return True
        return False
