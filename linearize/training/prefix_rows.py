"""Rows whose beginning is read without causality, for models with a prefix encoder.

Some tokens of the prefix are replaced by a mask token and asked for in their own place; the text
behind the prefix is predicted as always. No token is a target inside the prefix: its successor is
seen there. Source: Arora et al., arXiv 2407.05483, section 4.2, which has a fixed prefix of half a
row; here its length is drawn, so that prompts of any length are read without padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..errors import InputError, UsageError
from ..recipe import EncoderSettings
from .packing import IGNORED, Rows

OBJECTIVE = "masked_prefix"


@dataclass(frozen=True, eq=False, kw_only=True)
class PrefixRows(Rows):
    """`Rows`, a share of them with a prefix. Drawn anew each time from torch's generator.

    - `settings`: how prefixes are drawn.
    - `mask_id`: the mask token.
    """

    FIRST: ClassVar[bool] = False  # as in `masked`

    settings: EncoderSettings
    mask_id: int

    def batch(self, indices: Iterable[int]) -> dict[str, Tensor]:
        """As of `Rows`, with what `masked` adds.

        At least one row has a prefix: every step trains the encoder.
        """
        indices = list(indices)
        found = super().batch(indices)
        lengths = self._lengths(indices)
        chosen = torch.rand(len(indices)) < self.settings.rows
        chosen[0] |= not chosen.any()
        hidden = torch.rand(found["input_ids"].shape) < self.settings.masked
        lengths = torch.where(chosen, lengths, 0)
        return masked(found, lengths, hidden, self.mask_id, first=self.FIRST)

    def _lengths(self, indices: list[int]) -> Tensor:
        """[B] int64, of the prefixes that rows have if they have one."""
        left = len(self.tokens) - torch.tensor(indices) * self.seq_len
        low, high = self.settings.shortest, self.settings.longest
        share = low + (high - low) * torch.rand(len(indices), dtype=torch.float64)
        return (share * left.clamp(max=self.seq_len)).long()


def masked(
    batch: dict[str, Tensor],
    lengths: Tensor,
    hidden: Tensor,
    mask_id: int,
    *,
    first: bool = False,
) -> dict[str, Tensor]:
    """A batch with prefixes.

    Args:
        batch: `input_ids` and `targets`, each [B, T], as of `Rows.batch`.
        lengths: [B] int64, tokens of each row's prefix.
        hidden: [B, T] bool, tokens to mask, inside the prefix.
        mask_id: what stands in their place.
        first: whether the first token behind the prefix is a target, of the prefix's last token. In
            the published loss it is not.

    Returns `input_ids` with masks, `unmasked` (as they were), `targets` without those of the
    prefix, `masked_targets` (the hidden tokens in their own places, -100 elsewhere) and
    `prefix_lengths`.
    """
    ids, targets = batch["input_ids"], batch["targets"]
    inside = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]
    hidden = hidden & inside
    read = torch.arange(ids.shape[1], device=ids.device) < lengths[:, None] - int(first)
    return {
        **batch,
        "input_ids": ids.masked_fill(hidden, mask_id),
        "unmasked": ids,
        "targets": targets.masked_fill(read, IGNORED),
        "masked_targets": ids.masked_fill(~hidden, IGNORED),
        "prefix_lengths": lengths,
    }


def build(rows: Rows, settings: EncoderSettings, tokenizer: PreTrainedTokenizerBase) -> PrefixRows:
    """`rows` with prefixes.

    Raises `UsageError` for rows with document boundaries, `InputError` if there is no mask token.
    """
    if rows.boundaries:
        raise UsageError(
            f"objective '{OBJECTIVE}' reads the beginning of each row as one text; set "
            "data.boundaries=false"
        )
    own = {f.name: getattr(rows, f.name) for f in fields(rows)}
    return PrefixRows(**own, settings=settings, mask_id=mask_token(settings, tokenizer))


def mask_token(settings: EncoderSettings, tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of `settings.mask_token`; by default of the tokenizer's mask token, else unknown token.

    Raises `InputError` if there is none, or if it is one that ends or pads texts.
    """
    name = settings.mask_token or tokenizer.mask_token or tokenizer.unk_token
    remedy = "name one that texts do not use by encoder.mask_token=TOKEN, such as a reserved one"
    if name is None:
        raise InputError(f"this tokenizer has no mask token; {remedy}")
    found = tokenizer.convert_tokens_to_ids(name)
    if found is None or (found == tokenizer.unk_token_id and name != tokenizer.unk_token):
        raise InputError(f"the vocabulary has no token '{name}' to mask with; {remedy}")
    if found in (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.pad_token_id):
        raise InputError(f"the mask token '{name}' begins, ends or pads texts; {remedy}")
    return found


def check(objectives: Iterable[str], prefix: str, *, made: bool = False) -> None:
    """Raises `UsageError` where objectives and the model's `prefix` do not fit together.

    - `made`: whether the encoder is new, so that it has to be trained.
    """
    trained = OBJECTIVE in objectives
    if trained and prefix == "none":
        raise UsageError(
            f"objective '{OBJECTIVE}' trains a prefix encoder, and this model has none; convert "
            "with liger.prefix=jrt"
        )
    if made and not trained and prefix != "none":
        raise UsageError(
            f"liger.prefix={prefix} needs training.objective.{OBJECTIVE} (0.25 in the paper; 0 = "
            "read prefixes, mask nothing), or its encoder would not be trained"
        )
