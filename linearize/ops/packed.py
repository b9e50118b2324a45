"""Rows of unequal length laid end to end, the form in which padding and packing are both exact.

A padded batch `[B, T]` with a mask and a packed row `[1, N]` with `cu_seqlens` describe the same
thing: a list of sequences. Every op computes on the packed form, so a padded token can reach
neither state nor window, whatever side it stands on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UsageError

MOSTLY = 0.8  # share of real tokens from which packing them does not pay


@dataclass(frozen=True)
class Packed:
    """`S` sequences of a `[B, T]` batch, packed into one row of `N` tokens.

    - `indices`: [N] int64, places of the tokens in the flattened batch; None = all, in order.
    - `cu_seqlens`: [S + 1] int64 boundaries on the CPU, first 0, last N.
    - `batch`, `length`: B and T.
    """

    indices: Tensor | None
    cu_seqlens: Tensor
    batch: int
    length: int

    @classmethod
    def of(
        cls, mask: Tensor | None, cu_seqlens: Tensor | None, batch: int, length: int
    ) -> Packed | None:
        """What a padded or packed [B, T] input holds; None when every row is one full sequence.

        Raises `UsageError` when mask or boundaries do not fit, or both are given.
        """
        if mask is not None and cu_seqlens is not None:
            raise UsageError("give mask (a padded batch) or cu_seqlens (a packed row), not both")
        if cu_seqlens is not None:
            return cls(None, check_cu_seqlens(cu_seqlens, batch, length), batch, length)
        if mask is None:
            return None
        if mask.shape != (batch, length):
            raise UsageError(f"mask {tuple(mask.shape)} must be [B, T] = [{batch}, {length}]")
        return cls.from_mask(mask.bool())

    @classmethod
    def from_mask(cls, mask: Tensor) -> Packed:
        """One sequence per row of a [B, T] bool mask, True = real token; rows may be empty."""
        lengths = mask.sum(1).cpu()
        indices = mask.flatten().nonzero().squeeze(1)
        return cls(indices, _boundaries(lengths), *mask.shape)

    @classmethod
    def from_starts(cls, starts: Tensor) -> Packed:
        """Documents of a [B, T] batch from a bool tensor that is True at each first token.

        The first column always starts a document.
        """
        starts = starts.clone()
        starts[:, 0] = True
        at = starts.flatten().nonzero().squeeze(1).cpu()
        end = torch.tensor([starts.numel()])
        return cls(None, torch.cat([at, end]), *starts.shape)

    @property
    def lengths(self) -> Tensor:
        """[S] tokens of each sequence."""
        return self.cu_seqlens.diff()

    def pack(self, x: Tensor) -> Tensor:
        """[B, T, ...] -> [1, N, ...]"""
        flat = x.reshape(1, self.batch * self.length, *x.shape[2:])
        return flat if self.indices is None else flat[:, self.indices]

    def unpack(self, x: Tensor) -> Tensor:
        """[1, N, ...] -> [B, T, ...], zero where there is no token."""
        if self.indices is not None:
            out = x.new_zeros(self.batch * self.length, *x.shape[2:])
            x = out.index_copy(0, self.indices, x[0]).unsqueeze(0)
        return x.reshape(self.batch, self.length, *x.shape[2:])


def mostly_real(mask: Tensor) -> bool:
    """Whether computing the padding of a [B, T] batch costs less than packing what is real."""
    return bool(mask.sum() >= MOSTLY * mask.numel())


def check_cu_seqlens(cu_seqlens: Tensor, batch: int, length: int) -> Tensor:
    """`cu_seqlens` as int64 on the CPU. Raises `UsageError` if it does not fit the input."""
    if batch != 1:
        raise UsageError(
            f"cu_seqlens describes one packed row, but the batch is {batch}; use mask="
        )
    at = cu_seqlens.detach().cpu().long()
    if at.ndim != 1 or at.numel() < 2 or at[0] != 0 or at[-1] != length or (at.diff() < 0).any():
        raise UsageError(
            f"cu_seqlens={at.tolist()} must rise from 0 to the row's length {length}; "
            "entry i is where sequence i begins"
        )
    return at


def document_ids(cu_seqlens: Tensor, device: torch.device) -> Tensor:
    """[N] index of the sequence each token belongs to."""
    lengths = cu_seqlens.diff().to(device)
    return torch.repeat_interleave(torch.arange(lengths.numel(), device=device), lengths)


def _boundaries(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
