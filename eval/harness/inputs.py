"""What a model gets to read: too long inputs lose their beginning, contexts may be read again."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from linearize.decoding import jrt
from linearize.errors import InputError

_log = logging.getLogger(__name__)


class Inputs:
    """Fits texts and tokens to `limit` tokens (None = any number), and counts what that took.

    - `encode`: text -> token ids; called with `add_special_tokens=False` for pieces of a text.
    - `times`: how often a context is read (JRT-Prompt).

    Attributes: `cut`, inputs that lost their beginning; `repeated`, tokens read again.
    """

    def __init__(
        self, encode: Callable[..., list[int]], tokenizer: Any, *, limit: int | None, times: int
    ) -> None:
        self._encode, self._tokenizer = encode, tokenizer
        self.limit, self.times = limit, times
        self.cut = 0
        self.repeated = 0

    def scored(self, tokens: tuple[int, ...], count: int) -> tuple[int, ...]:
        """Of tokens whose last `count` are predicted, those that fit; the last is not read.

        Raises `InputError` if what is predicted does not fit alone.
        """
        if self.limit is None:
            return tokens
        if count > self.limit:
            raise InputError(
                f"a continuation of {count} tokens is to be scored, and the model reads "
                f"{self.limit}; the task is too long for it"
            )
        return self._left(tokens, self.limit + 1)

    def prompt(self, context: str, new: int) -> list[int]:
        """Token ids of a context that leave room for `new` more.

        Raises `InputError` if there is no room for a prompt.
        """
        if self.limit is None:
            return self._encode(self.again(context))
        if new >= self.limit:
            raise InputError(
                f"a task asks for {new} new tokens, which leaves no room for a prompt in the "
                f"model's {self.limit}; lower it with --gen_kwargs max_gen_toks=N"
            )
        tokens = tuple(self._encode(self.again(context, reserved=new)))
        return list(self._left(tokens, self.limit - new))

    def again(self, context: str, continuation: str = "", reserved: int = 0) -> str:
        """The context as often as it is to be read.

        It is cut first, so that all of it fits: cutting the finished prompt would take the first
        copy away and look as if reading again did not help.
        """
        if self.times == 1 or not context.strip():
            return context
        if self.limit is not None:
            tokens = self._encode(context, add_special_tokens=False)
            rest = len(self._encode(continuation, add_special_tokens=False)) + reserved
            fits = max(1, (self.limit - rest) // self.times - 1)  # its separator
            if len(tokens) > fits:
                self._told(len(tokens), fits)
                context = self._tokenizer.decode(tokens[-fits:])
        repeated = jrt.repeat(context, times=self.times)
        self.repeated += jrt.cost(self._tokenizer, repeated, context, self.times).extra_tokens
        return repeated

    def _left(self, tokens: tuple[int, ...], room: int) -> tuple[int, ...]:
        if len(tokens) <= room:
            return tokens
        self._told(len(tokens), room)
        return tokens[-room:]

    def _told(self, length: int, room: int) -> None:
        if not self.cut:
            _log.warning(
                "an input of %d tokens loses its beginning: %d fit (max_length %s); the number of "
                "such inputs is in the results as inputs_cut",
                length,
                room,
                self.limit,
            )
        self.cut += 1
