"""Remedies against repetition by name: one row each, for the command, evaluation and Python.

A factory takes the tokenizer, then its own options by keyword, validates them, and returns a
`LogitsProcessor`. A `RowProcessor` is told where the prompts end and who listens.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from transformers import LogitsProcessor, LogitsProcessorList

from linearize.errors import UsageError, suggest

from .repetition import DRY, RPG, DittoCap, NoRepeatNGram, RepetitionPenalty, RPGReleased
from .repetition.rows import Penalty, RowProcessor

Remedies = Mapping[str, Mapping[str, Any]] | Iterable[str]

REMEDIES: dict[str, Callable[..., LogitsProcessor]] = {
    remedy.name: remedy
    for remedy in (RPG, RPGReleased, DittoCap, DRY, RepetitionPenalty, NoRepeatNGram)
}


def given(remedies: Remedies) -> dict[str, dict[str, Any]]:
    """Name -> options, from a mapping or from names alone."""
    if isinstance(remedies, str):
        remedies = [remedies]
    if isinstance(remedies, Mapping):
        return {name: dict(options) for name, options in remedies.items()}
    return {name: {} for name in remedies}


def options_of(name: str) -> dict[str, Any]:
    """Option -> default of a remedy, in the order of its signature."""
    _, *options = inspect.signature(REMEDIES[name]).parameters.values()
    return {p.name: p.default for p in options if p.kind is p.KEYWORD_ONLY}


def make(
    remedies: Remedies,
    tokenizer: Any,
    *,
    pad_token_id: int | None = None,
    prompt_length: int | None = None,
    on_penalty: Callable[[Penalty], None] | None = None,
) -> LogitsProcessorList:
    """The processors of one batch, in the order given.

    Raises `UsageError` for an unknown name, option or value, `InputError` for a grammar that is
    not installed.
    """
    made = LogitsProcessorList()
    for name, options in given(remedies).items():
        if name not in REMEDIES:
            raise UsageError(f"there is no remedy '{name}'{suggest(name, REMEDIES)}")
        known = options_of(name)
        for option in options:
            if option not in known:
                raise UsageError(f"'{name}' has no option '{option}'{suggest(option, known)}")
        processor = REMEDIES[name](tokenizer, **options)
        if isinstance(processor, RowProcessor):
            if pad_token_id is not None:
                processor.pad_token_id = pad_token_id
            processor.prompt_length = prompt_length
            processor.on_penalty = on_penalty
        made.append(processor)
    return made
