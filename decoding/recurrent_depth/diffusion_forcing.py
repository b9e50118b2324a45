"""Diffusion forcing: many positions of a text in work at once, each a draft until it settles.

Every step applies the core a few times to a wave of positions, decodes all of them, replaces drafts
by what is predicted now, and lets new positions in. A looped model corrects the state of a position
whose token has changed, because the core sees the token at every recurrence. A position is final
once it has settled, all left of it are final, and its token is what they predict.

Source: Geiping et al., arXiv 2510.14961, algorithm 1. `reference` runs it as the authors released
it; this is ours: aligned comparison, batches, an end after r recurrences at most, exact mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel, require_looped

from ..sampling import Sampler
from .choosing import Chooser
from .depth import Depth
from .freezing import RULES, Look, relative
from .loop import Rows, register, sampler
from .noise import SCHEDULES, mix
from .prompt import Prompt, before_wave
from .reference_rows import reference_rows
from .request import Compat, Request, Run, recurrences
from .verifying import verified
from .wave import Line, Wave
from .wave_settings import WaveSettings
from .wave_spent import WaveSpent


@torch.no_grad()
def diffuse(
    model: LoopedModel,
    request: Request,
    settings: WaveSettings,
    *,
    seeds: Sequence[int] | None = None,
) -> Run:
    """Continue each row of a request; rows advance at their own speed and leave when done.

    - `seeds`: one per row, of random states; None: 0 for all.

    Raises `UsageError` for a model that is not looped and settings that do not fit it,
    `CheckError` for logits without a usable token.
    """
    require_looped(model, needed_by="the sampler 'diffusion-forcing'", goes_back=True)
    if not model.loop.injects_input:
        raise UsageError(
            f"{type(model).__name__} takes in a token only once, so the state of a draft that was "
            "wrong could not be corrected; use 'autoregressive', 'adaptive' or 'self-speculative'"
        )
    seeds = [0] * len(request.input_ids) if seeds is None else seeds
    if settings.compat == "reference":
        return reference_rows(model, request, settings, seeds=seeds)
    return Diffusion(model, request, settings, seeds).run()


class Diffusion:
    """One batch; `run` it once."""

    def __init__(
        self, model: LoopedModel, request: Request, settings: WaveSettings, seeds: Sequence[int]
    ) -> None:
        self.request, self.settings = request, settings
        self.steps = recurrences(model.loop, settings.num_steps)
        if settings.inner_recurrence > self.steps:
            raise UsageError(
                f"inner_recurrence={settings.inner_recurrence} is more than num_steps="
                f"{self.steps}, the recurrences of a finished token; lower it"
            )
        if isinstance(settings.cache_budget, int) and settings.cache_budget > self.steps:
            raise UsageError(
                f"cache_budget={settings.cache_budget} keeps more recurrences than the num_steps="
                f"{self.steps} that are run; lower it, or None for all"
            )
        # A step works on the last kept recurrences: there older tokens are what they came to.
        self.first_step = self.steps - settings.inner_recurrence
        self.sharing = None if settings.verify else settings.cache_budget
        self.depth = Depth(
            model,
            request.seeded(seeds),
            sharing=self.sharing,
            init_scale=settings.init_scale,
            ahead=0,
        )
        self.chooser, self.rows = Chooser(request), Rows(request)
        B = len(request.input_ids)
        self.lengths = request.real.sum(1).tolist()
        self.proposed: list[list[int]] = [[] for _ in range(B)]
        self.spent = WaveSpent(
            steps=[[] for _ in range(B)],
            widths=[[] for _ in range(B)],
            trace=[[] for _ in range(B)] if settings.trace else [],
        )

    def run(self) -> Run:
        self._begin()
        count = 0
        while self.wave is not None:
            count += self.prompt is None
            self._step()
            if self.settings.max_steps is not None and count >= self.settings.max_steps:
                break
        self.spent.core_passes = self.depth.spent.core_passes
        self.spent.core_tokens = self.depth.spent.core_tokens
        return Run(self.rows.ids(), self.spent)

    def _begin(self) -> None:
        """Run the prompts, or so much of them that the wave can begin beside them."""
        B, request = len(self.lengths), self.request
        self.wave = None
        self.prompt: Prompt | None = Prompt(
            self.depth, request.input_ids, request.where, self.steps
        )
        alone = before_wave(self.settings, self.steps, max(self.lengths), request.max_new_tokens)
        logits = self.prompt.alone(alone)
        if alone == self.steps:
            self.prompt = None
            first = [self._first(scores, row) for row, scores in enumerate(logits[:, -1])]
        else:
            rows, texts = list(range(B)), [[]] * B
            first = self.chooser.drafts(logits, rows, [0] * B, texts)[:, 0].tolist()
        lines = [
            Line(row, self.lengths[row], [token])
            for row, token in enumerate(first)
            if not self.rows.done[row]
        ]
        self.depth.keep([not done for done in self.rows.done])
        if lines:
            remember = self.settings.freeze.startswith("latent-acceleration")
            noise = self.depth.fresh if self.settings.noise else None
            self.wave = Wave(lines, self._fresh, remember=remember, noise=noise)

    def _first(self, logits: Tensor, row: int) -> int:
        """The first new token of a row, from logits [V] of a prompt that is done."""
        token = self.chooser.final(logits, row, [])
        self._finish(row, [token], [self.steps])
        self.rows.ask()
        return token

    def _fresh(self, line: Line, count: int, newest: Tensor) -> Tensor:
        if self.settings.continuous_compute and len(newest):
            return newest[-1:].expand(count, -1)
        return self.depth.fresh(line.row, count)

    def _step(self) -> None:
        wave, settings = self.wave, self.settings
        logits = self._pass(wave)
        texts = [self._text(line) for line in wave.lines]
        new = self.chooser.drafts(
            logits, [x.row for x in wave.lines], [len(t) for t in texts], texts
        ).tolist()
        for line in wave.lines:
            line.spend(settings.inner_recurrence)
            self.spent.widths[line.row].append(len(line))
        if self.prompt is not None:
            logits = self._behind_prompt(logits, new)
        for line, tokens in zip(wave.lines, new, strict=True):
            line.predict(tokens)
        settled, broken = self._settled(logits)
        tips, dropped = [], []
        for b, line in enumerate(wave.lines):
            tips.append(new[b][len(line) - 1])
            count = 0 if self.prompt is not None else line.final(new[b], settled[b])
            if settings.trace:
                self.spent.trace[line.row].append(line.record(count))
            count = self._freeze(line, count, new[b], logits[b], broken[b])
            line.redraft(new[b])
            line.drop(count)
            dropped.append(count)
        if settings.verify:
            self._verify()
        self.rows.ask()
        self._advance(tips, dropped)

    def _behind_prompt(self, logits: Tensor, new: list[list[int]]) -> Tensor:
        """Take the prompts' predictions off the left of `logits` [B, 1 + W, V] and `new`."""
        done = not self.prompt.left
        for line, tokens, scores in zip(self.wave.lines, new, logits[:, 0], strict=True):
            first = tokens.pop(0)
            line.begin(self._first(scores, line.row) if done else first)
        if done:
            self.prompt = None
        return logits[:, 1:]

    def _pass(self, wave: Wave) -> Tensor:
        """Embed, mix, recur, decode: logits [B, W, V], beside a prompt [B, 1 + W, V]."""
        settings, depth = self.settings, self.depth
        e = wave.embed(depth)
        z, e = self._disturbed(wave.z, e)
        where = wave.positions()
        if self.prompt is not None:
            wave.z, logits = self.prompt.beside(z, e, where, settings.inner_recurrence)
            return logits
        depth.at(where)
        for step in range(self.first_step, self.steps):
            z = depth.core(z, e, step)
        wave.z = z
        return depth.decode(z, keep=0)

    def _disturbed(self, z: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
        """States with noise and embeddings with momentum, where the wave is not calm yet.

        `stirred` [B, W] bool says where that makes a difference.
        """
        wave, settings = self.wave, self.settings
        self.stirred = torch.zeros_like(e[..., 0], dtype=torch.bool)
        if not settings.noise and not settings.momentum:
            return z, e
        restless = 1 - wave.each("calm").to(wave.device, torch.float32)
        if settings.momentum:
            weight = settings.momentum * restless * wave.known
            mixed = wave.e_old = torch.lerp(e, wave.e_old, weight[..., None].to(e))
            # What is left of another token's embedding, if it could move a state that is at rest.
            self.stirred = relative(mixed - e, e) > settings.exit_threshold / 10
            e = mixed
        if settings.noise:
            share = SCHEDULES[settings.noise_schedule](wave.each("total").float(), self.steps)
            level = settings.noise * share.to(wave.device) * restless
            z = mix(z, wave.u, level, settings.noise_mixing)
            self.stirred = self.stirred | (level > 0)
        return z, e

    def _settled(self, logits: Tensor) -> tuple[list[list[bool]], list[list[bool]]]:
        """[B, W] which positions have settled, and whose logits are NaN or infinite."""
        wave, settings = self.wave, self.settings
        look = Look(
            wave.z,
            wave.z1,
            wave.z2,
            wave.each("since"),
            wave.each("unchanged"),
            settings.exit_threshold,
            self.steps,
            settings.inner_recurrence,
        )
        broken = ~logits.amax(-1).isfinite()
        settled = RULES[settings.freeze](look).to(broken.device) | broken
        settled, broken, stirred = torch.stack([settled, broken, self.stirred]).tolist()
        limit = self.steps
        for line, flags, disturbed in zip(wave.lines, settled, stirred, strict=True):
            line.calm_down(flags, disturbed)
            for i, since in enumerate(line.since):
                flags[i] = flags[i] or since >= limit
        return settled, broken

    def _freeze(
        self, line: Line, count: int, new: list[int], logits: Tensor, broken: list[bool]
    ) -> int:
        """The first `count` predictions of a line are final; returns how many are in the end."""
        if self.settings.verify:
            self.proposed[line.row] += new[:count]
            return count
        if self.chooser.watched or any(broken[:count]):
            text = self._text(line)
            for i, scores in enumerate(logits[:count]):
                token = self.chooser.final(scores, line.row, text + new[:i])
                if token != new[i]:  # a processor that answers differently when asked again
                    new[i], count = token, i + 1
                    break
        self._finish(line.row, new[:count], line.total[:count])
        return count

    def _verify(self) -> None:
        """Check what is proposed if there is enough of it, or a text would end with it."""
        lines = self.wave.lines
        if not any(self._due(line.row) for line in lines):
            return
        proposals = [self.proposed[line.row] for line in lines]
        texts = [self.rows.tokens[line.row] for line in lines]
        found = verified(self.depth, self.chooser, lines, texts, proposals, self.steps)
        for line, tokens in zip(lines, found, strict=True):
            proposed, self.proposed[line.row] = self.proposed[line.row], []
            self._finish(line.row, tokens, [self.steps] * len(tokens))
            if tokens != proposed:
                line.restart(line.first - len(proposed) + len(tokens), tokens[-1])
            line.embedded = 0  # the cache forgets their keys and values
        self.depth.trim(torch.tensor([line.first for line in lines]))

    def _due(self, row: int) -> bool:
        proposed = self.proposed[row]
        left = self.request.max_new_tokens - len(self.rows.tokens[row])
        full = len(proposed) >= min(self.settings.verify_every, left)
        return full or not self.request.eos.isdisjoint(proposed)

    def _finish(self, row: int, tokens: list[int], spent: list[int]) -> None:
        self.rows.add(row, tokens)
        have = len(self.rows.tokens[row])
        self.spent.steps[row] = (self.spent.steps[row] + spent)[:have]

    def _text(self, line: Line) -> list[int]:
        return self.rows.tokens[line.row] + self.proposed[line.row]

    def _advance(self, tips: list[int], dropped: list[int]) -> None:
        """Rows that are done leave, the others take in new positions.

        - `tips`: what the last position of each line predicts; further new ones repeat it.
        """
        wave, settings = self.wave, self.settings
        stay = [b for b, line in enumerate(wave.lines) if not self.rows.done[line.row]]
        if not stay:
            self.wave = None
            return
        if len(stay) < len(wave.lines):
            self.depth.keep([b in stay for b in range(len(wave.lines))])
            wave.keep(stay)
            tips, dropped = [tips[b] for b in stay], [dropped[b] for b in stay]
        kept = [0 if line.fresh else len(line) for line in wave.lines]
        for line, tip in zip(wave.lines, tips, strict=True):
            if line.fresh:
                line.fresh = False
                continue  # it has just begun again, nothing is predicted yet
            room = self.lengths[line.row] + self.request.max_new_tokens - 1 - line.end
            if settings.max_wavefront:
                room = min(room, settings.max_wavefront - len(line))
            line.extend([tip] * max(0, min(settings.headway, room)))
        wave.pack(dropped, kept)


@register("diffusion-forcing")
def diffusion_forcing(
    *,
    inner_recurrence: int = 4,
    num_steps: int | None = None,
    freeze: str = "latent-diff",
    exit_threshold: float = 0.03,
    headway: int = 1,
    max_wavefront: int = 128,
    noise: float | None = None,
    noise_schedule: str | None = None,
    noise_mixing: str = "linear",
    momentum: float = 0.1,
    init_scale: float | None = None,
    continuous_compute: bool = False,
    cache_budget: Any = 1,
    max_steps: int | None = None,
    prefill: bool = True,
    head_start: int = 256,
    verify: bool = False,
    verify_every: int = 32,
    compat: Compat = None,
    trace: bool = False,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    typical: float = 1.0,
) -> Sampler:
    """Many positions at once, each a draft until it settles; for looped models.

    The options are those of `WaveSettings` and, for drawing, of `sampling.sample`. `noise`,
    `noise_schedule` and `init_scale` None: the paper's 0, "linear" and ours 0; with compat=
    "reference" the released code's 0.5, "dampened" and 1. Raises `UsageError` as they do.
    """
    released = compat == "reference"
    settings = WaveSettings(
        inner_recurrence=inner_recurrence,
        num_steps=num_steps,
        freeze=freeze,
        exit_threshold=exit_threshold,
        headway=headway,
        max_wavefront=max_wavefront,
        noise=(0.5 if released else 0.0) if noise is None else noise,
        noise_schedule=noise_schedule or ("dampened" if released else "linear"),
        noise_mixing=noise_mixing,
        momentum=momentum,
        init_scale=(1.0 if released else 0.0) if init_scale is None else init_scale,
        continuous_compute=continuous_compute,
        cache_budget=cache_budget,
        max_steps=max_steps,
        prefill=prefill,
        head_start=head_start,
        verify=verify,
        verify_every=verify_every,
        compat=compat,
        trace=trace,
    )
    return sampler(
        "diffusion-forcing",
        lambda seeds: partial(diffuse, settings=settings, seeds=seeds),
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        typical=typical,
        draws=settings.draws,
    )
