"""The diffusion-forcing sampler as the released code runs it, quirks included.

Written from a description of seal-rg/recurrent-pretraining (commit 59e0b69); tested against traces
recorded with that code. What it does and `wave` does better:

- It compares a position with another one's state after every step in which the wave advanced, so
  it freezes about every second step, and then everything left of the right-most settled position.
- The last frozen token stays in the wave until the next one is frozen, so a wavefront of 1 never
  moves; committed keys may belong to a token that changed in the same step.
- Stop tokens are looked for only after r steps, among the newest tokens.
- One sequence at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel

from .freezing import relative
from .noise import SCHEDULES, mix
from .wave_settings import WaveSettings

# (rows) -> [rows, h] initial states; the released code draws even where nothing is random
Draw = Callable[[int], Tensor]
# (frozen ids [1, F], logits [V]) -> token
Choose = Callable[[Tensor, Tensor], int]
# (count) -> ids that fill positions no token was proposed for
Filler = Callable[[int], list[int]]

MAX_STEPS = 4096


@dataclass
class Reference:
    """One sequence: `run` it once.

    - `choose`, `draw`, `filler`: see their types; `stop`: ids that end the text.
    - `on_step`: called after every step with what it did; for traces.

    `frozen` counts final tokens in `ids`; `core_passes`, `core_tokens` what was computed.
    """

    model: LoopedModel
    settings: WaveSettings
    prompt: list[int]
    max_new_tokens: int
    choose: Choose
    draw: Draw
    filler: Filler
    stop: frozenset[int] = frozenset()
    on_step: Callable[[dict[str, Any]], None] | None = None
    ids: list[int] = field(init=False)
    core_passes: int = field(init=False, default=0)
    core_tokens: int = field(init=False, default=0)
    step: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        s = self.settings
        self.steps = s.num_steps or self.model.loop.recurrences
        self.patience = self.steps // s.inner_recurrence
        if s.freeze == "fixed" and 0 < s.max_wavefront < self.patience + 2 + s.headway:
            raise UsageError(
                f"max_wavefront={s.max_wavefront} is too small for freeze='fixed' with compat="
                f"'reference': {self.steps} recurrences, {s.inner_recurrence} at a time, need "
                f"{self.patience + 2 + s.headway}"
            )
        if not s.prefill and 0 < s.max_wavefront < len(self.prompt):
            raise UsageError(
                f"max_wavefront={s.max_wavefront} cannot hold the prompt's {len(self.prompt)} "
                "tokens; raise it, or leave prefill on"
            )
        self.cache = self.model.new_cache(sharing=s.cache_budget)
        self.device = self.model.initial_state((0,), scale=0).device
        self.ids = list(self.prompt)
        self.spent: list[int] = []
        self.stable: list[int] = []
        self.pointer = 0

    def run(self) -> list[int]:
        """Ids, prompt included: may be longer than asked for, and go on after a stop token."""
        s, limit = self.settings, self.model.loop.context
        self._start()
        end = MAX_STEPS if s.max_steps is None else s.max_steps
        while self.frozen - len(self.prompt) < self.max_new_tokens and len(self.ids) <= limit:
            newest = self._step()
            self.step += 1
            at = self.step - 1
            if (at > self.steps and self.stop.intersection(newest)) or at > end:
                break
        return self.ids[: self.frozen]

    def _start(self) -> None:
        p = len(self.prompt)
        self.spent = [0] * p
        if self.settings.prefill:
            self.z = self.draw(p)
            where = torch.arange(p)[None]
            e = self.model.embed(self._tensor(self.prompt), where, self.cache)
            self.z = self._core(self.z[None], e, where, self.steps)[0]
            logits = self.model.decode(self.z[None], where, self.cache, logits_to_keep=1)
            self.ids.append(self.choose(self._tensor(self.ids), logits[0, -1]))
            self.frozen, self.committed = p + 1, p
            self.spent = [self.steps] * (p + 1)
            self.z = self.draw(1)
        else:
            self.frozen, self.committed = p, 0
            self.z = self.draw(p)
        if self.settings.momentum:
            self.e_old = self.model.embed(self._tensor(self.ids), torch.arange(len(self.ids))[None])
            self.e_old = self.e_old[0]
        self.e_start = 0
        self.z_old, self.z_start = self.z, 0
        self.z_older, self.z_older_start = torch.zeros_like(self.z), 0
        self.change = torch.zeros_like(self.z)

    def _step(self) -> list[int]:
        """One pass of the wave; returns the newest frozen tokens."""
        s, c, width = self.settings, self.committed, len(self.z)
        before, tokens_in = self.frozen, list(self.ids)
        where = torch.arange(c, c + width)[None]
        e = self.model.embed(self._tensor(self.ids[c : c + width]), where, self.cache)[0]
        e = self._momentum(e)
        self.spent += [0] * (c + width - len(self.spent))
        if s.noise:
            n = torch.tensor(self.spent[c : c + width], device=self.z.device).float()
            level = s.noise * SCHEDULES[s.noise_schedule](n, self.steps)
            self.z = mix(self.z, self.draw(width), level, s.noise_mixing)
        self.z = self._core(self.z[None], e[None], where, s.inner_recurrence)[0]
        for i in range(c, c + width):
            self.spent[i] += s.inner_recurrence
        latents = self.z
        new = self._decide(where)
        h = self._append(new)
        newest, criterion = self._freeze(h)
        self.cache.trim(self.committed)
        if self.on_step is not None:
            self.on_step(
                {
                    "step": self.step,
                    "tokens_in": tokens_in,
                    "tokens_out": list(self.ids),
                    "cache_index": c,
                    "width": width,
                    "spent": self.spent[c : c + width],
                    "greedy_new": new,
                    "criterion": criterion,
                    "k": self.pointer,
                    "frozen_before": before,
                    "frozen_len": self.frozen,
                    "frozen_tail": self.ids[self.frozen - 1],
                    "headway_in_step": h,
                    "cache_len_after": self.committed,
                    "states_after": len(self.z),
                    "latents": latents,
                    "embeds": e,
                }
            )
        self.z_older, self.z_older_start = self.z_old, self.z_start
        self.z_old, self.z_start = self.z, c  # the states start at the new c, the label is the old
        return newest

    def _momentum(self, e: Tensor) -> Tensor:
        eta, c = self.settings.momentum, self.committed
        if not eta:
            return e
        old = self.e_old[c - self.e_start :][: len(e)]
        mixed = (1 - eta) * e
        mixed[: len(old)] += eta * old
        self.e_old, self.e_start = mixed, c
        return mixed

    def _core(self, z: Tensor, e: Tensor, where: Tensor, count: int) -> Tensor:
        for step in range(count):
            z = self.model.core_step(z, e, where, self.cache, step)
        self.core_passes += count
        self.core_tokens += count * z.shape[1]
        return z

    def _decide(self, where: Tensor) -> list[int]:
        """Tokens of the positions from the first that is not frozen to the one after the wave."""
        logits = self.model.decode(self.z[None], where, self.cache)[0]
        frozen = self._tensor(self.ids[: self.frozen])
        first = max(self.frozen - 1 - self.committed, 0)
        return [self.choose(frozen, row) for row in logits[first:]]

    def _append(self, new: list[int]) -> int:
        """New tokens and states; returns how many positions were added."""
        s, c, width = self.settings, self.committed, len(self.z)
        decided = self.ids[: self.frozen] + new
        self.stable += [0] * (len(self.ids) - len(self.stable))
        for i, (old, now) in enumerate(zip(self.ids, decided[:-1], strict=True)):
            self.stable[i] += old == now
        self.ids = decided + self.filler(s.headway - 1)
        if s.continuous_compute and width >= s.headway:
            fresh = self.z[-s.headway :]
        else:
            fresh = self.draw(s.headway)
        self.z = torch.cat([self.z, fresh])
        if 0 < s.max_wavefront < len(self.z):
            self.z, self.ids = self.z[: s.max_wavefront], self.ids[: c + s.max_wavefront]
            return s.max_wavefront - width
        return s.headway

    def _freeze(self, h: int) -> tuple[list[int], list[float]]:
        """Newest frozen tokens, and what a latent rule measured."""
        rule, c = self.settings.freeze, self.committed
        if rule == "fixed":
            if self.step > self.patience:
                self.frozen += h
                self.committed += h
                self.z = self.z[h:]
            return self._last(), []
        values: list[float] = []
        if rule == "token-stability":
            settled = [i - c for i, count in enumerate(self.stable) if count > self.patience]
        else:
            values = self._measure().tolist()
            settled = [i for i, v in enumerate(values) if v < self.settings.exit_threshold]
        old = self.pointer
        if settled:
            self.pointer = self.frozen = c + settled[-1] + 1
            self.committed = self.frozen - 1
            self.z = self.z[self.committed - c :]
        latent = rule != "token-stability"
        return (self.ids[old : self.pointer] if latent else self._last()), values

    def _last(self) -> list[int]:
        return self.ids[self.frozen - self.settings.headway : self.frozen]

    def _measure(self) -> Tensor:
        """Change of the states, aligned as the released code aligns them."""
        c, rule = self.committed, self.settings.freeze
        if rule == "latent-acceleration-2":
            first = max(c, self.z_start, self.z_older_start)
            z, z1, z2 = (
                x[first - start :]
                for x, start in (
                    (self.z, c),
                    (self.z_old, self.z_start),
                    (self.z_older, self.z_older_start),
                )
            )
            n = min(len(z), len(z1), len(z2))
            z, z1, z2 = z[:n], z1[:n], z2[:n]
            return relative((z - z1) - (z1 - z2), z, 1e-6)
        old = self.z_old[c - self.z_start :]
        z = self.z[: len(old)]
        change = z - old[: len(z)]
        if rule == "latent-diff":
            return relative(change, z)
        n = min(len(change), len(self.change))
        before, self.change = self.change, change
        return relative(change[:n] - before[:n], z[:n])

    def _tensor(self, ids: list[int]) -> Tensor:
        return torch.tensor([ids], device=self.device)
