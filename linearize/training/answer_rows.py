"""Rows of documents that begin with a prompt, of which only what follows is learned.

What a prompt holds may be impossible to predict, such as facts that are told there for the first
time. Where answers are few, that noise would be most of the gradient.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..recipe import DataSettings
from . import data
from .packing import IGNORED, PAD, Rows, bos_of, eos_of, whole


@dataclass(frozen=True, eq=False, kw_only=True)
class AnswerRows(Rows):
    """`Rows` without the targets that are tokens of a prompt.

    - `learned`: [N] int32, 1 = token behind a prompt.
    """

    learned: NDArray[np.int32]

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """As of `Rows`; a batch that holds no answer has no target at all."""
        indices = list(indices)
        found = super().batch(indices)
        place = np.array(indices)[:, None] * self.seq_len + np.arange(1, self.seq_len + 1)
        learned = self.learned[np.minimum(place, len(self.learned) - 1)] == 1
        targets = found["targets"].masked_fill(~torch.from_numpy(learned), IGNORED)
        return found | {"targets": targets}


def build(
    settings: DataSettings, tokenizer: PreTrainedTokenizerBase, train_tokens: int
) -> AnswerRows:
    """Rows of whole documents, as many as a budget needs, or as there are.

    Prompt and answer are made tokens of separately, as they are when a model is used. Raises as
    `data.prompted` does, and `InputError` where there is no document.
    """
    bos = bos_of(tokenizer, settings)
    eos = eos_of(tokenizer, settings)
    found = data.prompted(settings, settings.prompt_field or "")
    tokens: list[NDArray[np.int32]] = []
    learned: list[NDArray[np.int32]] = []
    count = 0
    while count < train_tokens and (some := list(itertools.islice(found, 1024))):
        prompts, answers = (
            tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
            for texts in zip(*some, strict=True)
        )
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = [*bos, *prompt, *answer, *eos]
            tokens.append(np.array(ids, np.int32))
            learned.append((np.arange(len(ids)) >= len(bos) + len(prompt)).astype(np.int32))
            count += len(ids)
    if not tokens:
        raise InputError(f"{settings.source} holds no document to train on; give more text")
    starts = np.cumsum([0, *map(len, tokens[:-1])], dtype=np.int64)
    laid, places = whole(np.concatenate(tokens), starts, settings.seq_len, bos)
    # the layout depends on lengths alone
    marks, _ = whole(np.concatenate(learned), starts, settings.seq_len, [0] * len(bos))
    return AnswerRows(
        laid,
        places,
        settings.seq_len,
        boundaries=True,
        pad=tokenizer.pad_token_id or 0,
        learned=np.where(laid == PAD, 0, marks),
    )
