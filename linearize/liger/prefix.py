"""Encoder of prefix linear attention in a converted layer: how the prompt is read as a whole.

Its keys and values are the layer's own plus low-rank differences, so that pretrained projections
are shared. What it adds to the state is scaled by a weight per head that starts at 0: a model that
has not been trained with it computes exactly the causal function.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Share of the causal log decay that the encoder starts with, as a logit: 0.018. The bank is meant
# to hold a whole document; at full decay a pretrained key forgets half of it in some 16 tokens.
_DECAY = -4.0


class PrefixEncoder(nn.Module):
    """Differences of keys and values, decay and weight of the bank E. All float32.

    - `key_down`, `value_down`: [R, E]; `key_up`, `value_up`: [Hk D, R], 0 at the start.
    - `decay`: [Hk], logit of the encoder's log decay as a share of the causal one.
    - `weight`: [Hk], of E in the state, 0 at the start.
    """

    def __init__(self, hidden: int, heads: int, size: int, rank: int) -> None:
        super().__init__()
        self.key_down = nn.Parameter(torch.empty(rank, hidden, dtype=torch.float32))
        self.key_up = nn.Parameter(torch.empty(heads * size, rank, dtype=torch.float32))
        self.value_down = nn.Parameter(torch.empty(rank, hidden, dtype=torch.float32))
        self.value_up = nn.Parameter(torch.empty(heads * size, rank, dtype=torch.float32))
        self.decay = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.weight = nn.Parameter(torch.empty(heads, dtype=torch.float32))
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start anew: the layer's own keys and values, weight 0."""
        for down in (self.key_down, self.value_down):
            down.normal_(std=1 / math.sqrt(down.shape[1]))
        for zero in (self.key_up, self.value_up, self.weight):
            zero.zero_()
        self.decay.fill_(_DECAY)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """[B, T, E] -> differences of keys and values [B, T, Hk, D], decay share and weight [Hk].

        The decay share is in (0, 1).
        """
        x, heads = hidden_states, len(self.weight)

        def low_rank(down: Tensor, up: Tensor) -> Tensor:
            y = F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))
            return y.float().unflatten(-1, (heads, -1))

        keys = low_rank(self.key_down, self.key_up)
        values = low_rank(self.value_down, self.value_up)
        return keys, values, self.decay.sigmoid(), self.weight
