"""`compat="reference"` behind the sampler's door: row after row, as the released code takes one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from linearize.errors import UsageError
from linearize.recurrent_depth.interface import LoopedModel

from .choosing import Chooser
from .loop import Rows
from .reference import Reference
from .request import Request, Run
from .wave_settings import WaveSettings
from .wave_spent import WaveSpent

# Huginn's begin_text, end_text and end_turn end a text whatever the model says.
_STOP = (65504, 65505, 65508)


def reference_rows(
    model: LoopedModel, request: Request, settings: WaveSettings, *, seeds: Sequence[int]
) -> Run:
    """Like `diffusion_forcing.diffuse`; the text is cut at the end of text and at its length.

    Raises `UsageError` for drawing, which the released code does from one global generator.
    """
    if request.generators is not None:
        raise UsageError(
            "compat='reference' takes the most likely token, so that runs can be compared; leave "
            "out temperature, or compat"
        )
    rows, chooser = Rows(request), Chooser(request)
    B = len(request.input_ids)
    spent = WaveSpent(
        steps=[],
        widths=[[] for _ in range(B)],
        trace=[[] for _ in range(B)] if settings.trace else [],
    )
    for row, seed in enumerate(seeds):
        prompt = request.input_ids[row, request.real[row]].tolist()
        states = torch.Generator(request.input_ids.device).manual_seed(seed)
        words = torch.Generator().manual_seed(seed)

        def draw(count: int, states: torch.Generator = states) -> Tensor:
            return model.initial_state((count,), scale=settings.init_scale, generator=states)

        def fill(count: int, words: torch.Generator = words) -> list[int]:
            return torch.randint(model.loop.vocab_size, (count,), generator=words).tolist()

        def choose(frozen: Tensor, logits: Tensor, row: int = row, at: int = len(prompt)) -> int:
            text = frozen[0, at:].tolist()
            return int(chooser.drafts(logits[None, None], [row], [len(text)], [text])[0, 0])

        def seen(step: dict, row: int = row) -> None:
            spent.widths[row].append(step["width"])
            if settings.trace:
                spent.trace[row].append(_record(step))

        sampler = Reference(
            model,
            settings,
            prompt,
            request.max_new_tokens,
            choose=choose,
            draw=draw,
            filler=fill,
            stop=request.eos.union(_STOP),
            on_step=seen,
        )
        new = sampler.run()[len(prompt) :]
        spent.core_passes += sampler.core_passes
        spent.core_tokens += sampler.core_tokens
        rows.add(row, new)
        rows.ask()
    return Run(rows.ids(), spent)


def _record(step: dict) -> dict:
    first, width = step["cache_index"], step["width"]
    return {
        "first": first,
        "tokens": step["tokens_in"][first : first + width],
        "spent": step["spent"],
        "frozen": step["cache_len_after"] - first,
    }
