"""The wave: positions of several rows that are worked on at once, packed to the left.

A pool of (row, position) slots, [B, W]. Each row has its own first position and width; the rest of
its line is unused. States move with their positions when a row advances, grows or leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .depth import Depth


@dataclass
class Line:
    """One row's part of the wave. Lists have an entry per position.

    - `row`: which row of the request; `first`: position of the first entry in that row.
    - `tokens`: what stands at each position; the first is final once the prompt is done, the
      others are drafts.
    - `since`: recurrences since this token, or one left of it, changed; `total`: all of them.
    - `guess`, `unchanged`: the token predicted last, and for how many steps it has been the same.
    - `calm`: 1 where a position has come to rest under noise and momentum, which then end.
    - `fresh`: it has just been begun again.
    - `embedded`: how many of the first positions have the embedding of their token.
    """

    row: int
    first: int
    tokens: list[int]
    since: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    guess: list[int] = field(default_factory=list)
    unchanged: list[int] = field(default_factory=list)
    calm: list[int] = field(default_factory=list)
    fresh: bool = False
    embedded: int = 0

    def __post_init__(self) -> None:
        self.extend([])

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def end(self) -> int:
        """The position after the last."""
        return self.first + len(self.tokens)

    def extend(self, tokens: Sequence[int]) -> None:
        """New positions on the right."""
        self.tokens += tokens
        for counts, start in (
            (self.since, 0),
            (self.total, 0),
            (self.guess, -1),
            (self.unchanged, 0),
            (self.calm, 0),
        ):
            counts += [start] * (len(self.tokens) - len(counts))

    def spend(self, recurrences: int) -> None:
        self.since = [n + recurrences for n in self.since]
        self.total = [n + recurrences for n in self.total]

    def predict(self, new: Sequence[int]) -> None:
        """Take notice of what the positions predict: new[i] belongs after the i-th."""
        for i, token in enumerate(new[: len(self)]):
            same = token == self.guess[i]
            self.guess[i], self.unchanged[i] = token, self.unchanged[i] + 1 if same else 0

    def final(self, new: Sequence[int], settled: Sequence[bool]) -> int:
        """How many positions are done: settled, with the token that the one before predicts."""
        for i in range(len(self)):
            if not settled[i] or (i and self.tokens[i] != new[i - 1]):
                return i
        return len(self)

    def calm_down(self, settled: list[bool], stirred: Sequence[bool]) -> None:
        """What has settled under noise or momentum loses it, and has yet to settle without."""
        for i in range(len(self)):
            if settled[i] and stirred[i]:
                settled[i], self.calm[i] = False, 1

    def begin(self, token: int) -> None:
        """What the prompt predicts now stands first."""
        if token != self.tokens[0]:
            self.tokens[0] = token
            self._changed(0)

    def redraft(self, new: Sequence[int]) -> None:
        """Replace the drafts by what is predicted for their positions."""
        changed = [i for i in range(1, len(self)) if self.tokens[i] != new[i - 1]]
        if changed:
            self.tokens[1:] = new[: len(self) - 1]
            self._changed(changed[0])

    def _changed(self, first: int) -> None:
        """The text of the positions from this one on is another."""
        self.since[first:] = self.calm[first:] = [0] * (len(self) - first)
        self.embedded = min(self.embedded, first)

    def drop(self, count: int) -> None:
        """The first positions are done."""
        self.first += count
        self.embedded = max(0, self.embedded - count)
        for entries in (self.tokens, self.since, self.total, self.guess, self.unchanged, self.calm):
            del entries[:count]

    def restart(self, first: int, token: int) -> None:
        """Only this final token, from scratch."""
        self.drop(len(self))
        self.first, self.fresh = first, True
        self.extend([token])

    def record(self, frozen: int) -> dict[str, Any]:
        """What a step did, for traces: `frozen` positions of these are done."""
        told = {"first": self.first, "tokens": list(self.tokens), "spent": list(self.total)}
        return {**told, "frozen": frozen}


class Wave:
    """Lines and their states.

    - `z` [B, W, h] now; `z1`, `z2` after the last step and the one before; `e` [B, W, h] the
      prelude of each line's first `embedded` tokens; `e_old` [B, W, h] the embedding injected
      last, where `known` [B, W] says there is one.
    - `fresh`: (line, count, states it has [k, h]) -> [count, h] states of new positions.
    - `remember`: whether `z2` is wanted; else it is `z1`.
    - `noise`: (row, count) -> [count, h] noise of new positions, which keep it in `u` [B, W, h].
    """

    def __init__(
        self,
        lines: list[Line],
        fresh: Callable[[Line, int, Tensor], Tensor],
        *,
        remember: bool,
        noise: Callable[[int, int], Tensor] | None = None,
    ) -> None:
        self.lines, self.fresh, self.remember, self.noise = lines, fresh, remember, noise
        self.held = ["z", "z1", "e", "e_old", *(["u"] if noise else [])]
        empty = fresh(lines[0], 0, torch.empty(0))
        self.device = empty.device
        self.z = empty.new_zeros(len(lines), self.width, empty.shape[-1])
        self.z1 = self.z2 = self.e = self.e_old = self.z
        self.u = torch.zeros_like(self.z)
        self.pack([0] * len(lines), [0] * len(lines))

    @property
    def width(self) -> int:
        return max(map(len, self.lines))

    def positions(self) -> Tensor:
        """[B, W] on the CPU, -1 where unused."""
        W = self.width
        return torch.tensor([[*range(x.first, x.end), *[-1] * (W - len(x))] for x in self.lines])

    def each(self, name: str) -> Tensor:
        """[B, W] on the CPU of a list of the lines; 0 where unused."""
        W = self.width
        return torch.tensor([getattr(x, name) + [0] * (W - len(x)) for x in self.lines])

    def embed(self, depth: Depth) -> Tensor:
        """e [B, W, h] of all tokens. Those left of the first change keep theirs: it, and the keys
        and values beside it, depend on nothing to the right."""
        counts = [len(line) - line.embedded for line in self.lines]
        if not any(counts):
            return self.e
        n = torch.arange(max(counts))
        start = torch.tensor([line.embedded for line in self.lines])[:, None]
        new = n < torch.tensor(counts)[:, None]
        at = (start + n).clamp(max=self.width - 1)
        first = torch.tensor([line.first for line in self.lines])[:, None]
        depth.at((first + at).where(new, -1))
        e = depth.embed(self.each("tokens").gather(1, at).to(self.device))
        rows, columns = new.nonzero(as_tuple=True)
        to = (rows.to(self.device), at[rows, columns].to(self.device))
        self.e = self.e.index_put(to, e[rows.to(self.device), columns.to(self.device)])
        for line in self.lines:
            line.embedded = len(line)
        return self.e

    def pack(self, dropped: list[int], kept: list[int]) -> None:
        """Move states to where the lines have gone, and give new positions theirs.

        Of the states of each line, `dropped` on the left belong to positions that are done, and
        `kept` after them stay; further positions of the line are new.
        """
        W, old = self.width, self.z.shape[1]
        if any(dropped) or old != W:
            source = (torch.tensor(dropped)[:, None] + torch.arange(W)).clamp(max=old - 1)
            source = source.to(self.device)[..., None].expand(-1, -1, self.z.shape[2])
            for name in self.held:
                setattr(self, name, getattr(self, name).gather(1, source))
        self.known = (torch.arange(W) < torch.tensor(kept)[:, None]).to(self.device)
        for b, (line, start) in enumerate(zip(self.lines, kept, strict=True)):
            if start < len(line):
                new = self.fresh(line, len(line) - start, self.z[b, :start])
                self.z[b, start : len(line)] = self.z1[b, start : len(line)] = new
                if self.noise is not None:
                    self.u[b, start : len(line)] = self.noise(line.row, len(line) - start)
        self.z2, self.z1 = self.z1 if self.remember else self.z, self.z

    def keep(self, stay: list[int]) -> None:
        """Only these lines remain."""
        index = torch.tensor(stay, device=self.device)
        self.lines = [self.lines[i] for i in stay]
        for name in self.held:
            setattr(self, name, getattr(self, name)[index])
