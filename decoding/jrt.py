"""JRT-Prompt: the context is read several times before the question ("Just read twice").

A recurrent model must decide what to keep before it knows what will be asked; at the second
reading it knows. Any model can be used, nothing is trained, and the state keeps its size.
Source: Arora et al., arXiv 2407.05483. The prompts of its tasks are in `jrt_templates`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from linearize.errors import InputError, UsageError

SEPARATOR = "\n"  # a blank instead would change the first token of the second copy


def repeat(
    context: str,
    question: str = "",
    times: int = 2,
    *,
    cue: str = "",
    separator: str = SEPARATOR,
) -> str:
    """The context `times` times, then the question once.

    - `question`: what the model is to go on from. A blank joins it to the context, unless one of
      them brings white space. "" = the context holds its question, and all of it is repeated.
    - `times`: 1 is the ordinary prompt.
    - `cue`: a few words before the first copy that tell what will be asked (the published prompts
      have one); a blank follows.
    - `separator`: between copies. None is added to a context that ends with it.

    A context that is empty or all white space is not repeated: there is nothing to read twice.
    Raises `UsageError` if `times` is below 1.
    """
    if times < 1:
        raise UsageError(f"a context cannot be read {times} times; give 1 (once) or more")
    if not context.strip():
        return _join(context, question)
    between = "" if context.endswith(separator) else separator
    return _join(cue, between.join([context] * times) + _joint(context, question) + question)


def fitted(
    tokenizer: Any, context: str, *, room: int, length: Callable[[str], int], times: int
) -> str:
    """The end of a context that leaves the finished prompt no longer than `room` tokens.

    To be called before repeating: cutting a finished prompt takes the first copy away, and looks
    as if reading again did not help.

    - `length`: context -> tokens of the prompt that is made of it.

    Raises `InputError` if nothing of the context fits.
    """
    ids = tokenizer(context, add_special_tokens=False, verbose=False).input_ids
    kept, text = len(ids), context
    while (over := length(text) - room) > 0:
        kept -= -(-over // times)
        if kept <= 0:
            raise InputError(
                f"question and new tokens leave no room for a document that is read {times} times "
                f"in {room} tokens; shorten the question, or lower max_new_tokens"
            )
        text = tokenizer.decode(ids[-kept:], clean_up_tokenization_spaces=False)
    return text


def _join(left: str, right: str) -> str:
    return left + _joint(left, right) + right


def _joint(left: str, right: str) -> str:
    return " " if left and right and not (left[-1].isspace() or right[0].isspace()) else ""


@dataclass(frozen=True)
class Cost:
    """What repeating adds to one prompt.

    - `times`: readings of the context; `prompt_tokens`: of the whole prompt;
      `extra_tokens`: of them, what reading once would not need.
    """

    times: int
    prompt_tokens: int
    extra_tokens: int

    def seconds(self, prefill_seconds: float) -> float:
        """Of the seconds that reading the prompt took, those for the extra tokens.

        Takes every token to cost the same, as in models of constant memory; softmax attention
        spends more than this on the extra ones.
        """
        return prefill_seconds * self.extra_tokens / max(1, self.prompt_tokens)


def cost(tokenizer: Any, repeated: str, once: str, times: int) -> Cost:
    """Counts tokens of the two prompts, special tokens included."""
    tokens = len(tokenizer(repeated).input_ids)
    return Cost(times, tokens, tokens - len(tokenizer(once).input_ids))
