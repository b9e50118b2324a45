"""Rows of one document each, whose prefix is its prompt: an encoder trained as it is used.

What is read as a whole is what a user will give to be read as a whole: the document and the
question, or the instruction, but not the answer.
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
from ..recipe import DataSettings, EncoderSettings
from . import data
from .packing import PAD, bos_of, eos_of
from .prefix_rows import PrefixRows, mask_token


@dataclass(frozen=True, eq=False, kw_only=True)
class PromptRows(PrefixRows):
    """`PrefixRows` whose prefixes are given. Batches are as long as their longest document.

    - `lengths`: [N] int64, tokens of each row's prompt.
    - `ends`: [N] int64, tokens of each row.
    """

    FIRST = True  # an answer of one token would have no target otherwise

    lengths: NDArray[np.int64]
    ends: NDArray[np.int64]

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        indices = list(indices)
        longest = int(self.ends[indices].max())
        found = super().batch(indices)
        return {name: x[:, :longest] if x.ndim == 2 else x for name, x in found.items()}

    def _lengths(self, indices: list[int]) -> Tensor:
        return torch.from_numpy(self.lengths[indices])


def build(
    settings: DataSettings,
    encoder: EncoderSettings,
    tokenizer: PreTrainedTokenizerBase,
    train_tokens: int,
) -> PromptRows:
    """As many rows as a budget needs (padding counts), or as there are documents.

    The prompt and what follows it are made tokens of separately, as they are when a model is used.
    A document longer than a row keeps its end, the prompt loses its beginning. Raises as
    `data.prompted` and `prefix_rows.mask_token` do, and `InputError` where there is no document.
    """
    size, bos = settings.seq_len, bos_of(tokenizer, settings)
    eos = eos_of(tokenizer, settings)
    found = data.prompted(settings, encoder.prompt or "")
    pairs = list(itertools.islice(found, max(1, -(-train_tokens // size))))
    if not pairs:
        raise InputError(f"{settings.source} holds no document to train on; give more text")
    prompts, rests = (
        tokenizer(list(texts), add_special_tokens=False, verbose=False).input_ids
        for texts in zip(*pairs, strict=True)
    )
    tokens = np.full((len(pairs), size), PAD, np.int32)
    lengths, ends = np.zeros((2, len(pairs)), np.int64)
    for row, (prompt, rest) in enumerate(zip(prompts, rests, strict=True)):
        ids = [*bos, *prompt, *rest, *eos]
        lost = max(0, len(ids) - size)
        ends[row] = len(ids) - lost
        lengths[row] = max(0, len(bos) + len(prompt) - lost)
        tokens[row, : ends[row]] = ids[lost:]
    return PromptRows(
        tokens.reshape(-1),
        np.arange(len(pairs), dtype=np.int64) * size,
        size,
        boundaries=False,
        pad=tokenizer.pad_token_id or 0,
        settings=encoder,
        mask_id=mask_token(encoder, tokenizer),
        lengths=lengths,
        ends=ends,
    )
