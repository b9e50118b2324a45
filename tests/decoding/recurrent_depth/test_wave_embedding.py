"""The prelude of a wave runs for what is new to it, and the text is the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from linearize.decoding.recurrent_depth.diffusion_forcing import Diffusion
from linearize.decoding.recurrent_depth.request import Request
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings


def run(model: Any, again: bool, **settings: Any) -> tuple[Any, int]:
    """The run, and how many tokens its prelude worked on after the prompts."""
    ids = torch.tensor([list(b"r:abcdabcdab"), list(b"s:ann sees a")])
    wave = Diffusion(model, Request(ids, 24), WaveSettings(num_steps=16, **settings), [0, 0])
    wave._begin()
    embed, worked = wave.depth.embed, []

    def counted(new: torch.Tensor) -> torch.Tensor:
        worked.append(wave.depth._tokens)
        return embed(new)

    wave.depth.embed = counted
    while wave.wave is not None:
        if again:
            for line in wave.wave.lines:
                line.embedded = 0
        wave._step()
    return wave, sum(worked)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("trained_242", {}),
        ("random_242", {"inner_recurrence": 2, "max_wavefront": 6, "headway": 2}),
        ("random_242", {"verify": True, "verify_every": 4}),
    ],
)
@torch.no_grad()
def test_what_has_not_changed_is_not_embedded_again(looped: Any, name: str, settings: Any) -> None:
    model = looped.model(name)
    (once, few), (again, many) = (run(model, a, **settings) for a in (False, True))
    assert once.rows.tokens == again.rows.tokens
    assert once.spent.widths == again.spent.widths
    assert few < many
    if "verify" not in settings:  # whose checks embed too
        assert many == sum(map(sum, again.spent.widths))
