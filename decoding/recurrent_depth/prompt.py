"""The prompt of a wave while it is still at work: the wave begins beside it.

A prompt gets r recurrences. After the first few it already predicts what follows, so new positions
need not wait for the rest: each further pass of the core works on prompt and wave together. Nothing
is final before the prompt is done, and what it computes is what it computes alone, for it sees
nothing to its right.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .depth import Depth
from .wave_settings import WaveSettings


class Prompt:
    """The prompts of a batch, padded on the left.

    - `z`, `e` [B, L, h]; `where` [B, L] on the CPU, -1 = unused; `left`: recurrences still to do.
    """

    def __init__(self, depth: Depth, ids: Tensor, where: Tensor, steps: int) -> None:
        self.depth, self.where, self.steps, self.left = depth, where, steps, steps
        depth.at(where)
        self.e, self.z = depth.embed(ids), depth.initial(where)
        self.read = 0  # recurrences after which the coda has last seen all of it

    def alone(self, count: int) -> Tensor:
        """The next `count` recurrences without a wave: logits [B, 1, V] of the last place."""
        self.z = self._core(self.z, self.e, count)
        self.read = count
        return self.depth.decode(self.z)

    def beside(self, z: Tensor, e: Tensor, where: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The next `count` recurrences with a wave: its states and logits [B, 1 + W, V], of the
        prompt's last place and of the wave's.

        - `z`, `e` [B, W, h] and `where` [B, W] of the wave.
        """
        L, W = self.where.shape[1], where.shape[1]
        self.depth.at(torch.cat([self.where, where], 1))
        both = self._core(torch.cat([self.z, z], 1), torch.cat([self.e, e], 1), count)
        self.z, z = both[:, :L], both[:, L:]
        # For drafts the coda need not see the whole prompt anew each time: as its states settle,
        # when the recurrences have doubled.
        done = self.steps - self.left
        if not self.left or done >= 2 * self.read:
            self.read = done
            return z, self.depth.decode(both, keep=1 + W)
        self.depth.at(torch.cat([self.where[:, -1:], where], 1))
        return z, self.depth.decode(both[:, L - 1 :], keep=0)

    def _core(self, z: Tensor, e: Tensor, count: int) -> Tensor:
        done = self.steps - self.left
        for step in range(done, done + count):
            z = self.depth.core(z, e, step)
        self.left -= count
        return z


def before_wave(settings: WaveSettings, steps: int, longest: int, new: int) -> int:
    """Of `steps` recurrences, how many a prompt does before the wave begins beside it; all of them
    if it does not. The others are done in whole steps of the wave.

    - `longest` prompt of the batch; `new` tokens wanted. One position at a time is a sampler that
      has no wave, and one token needs none.
    """
    if longest > settings.head_start or settings.max_wavefront == 1 or new == 1:
        return steps
    return (steps - 1) % settings.inner_recurrence + 1
