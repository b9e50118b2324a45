"""`compat="reference"` does what the released sampler did, step by step."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from linearize.decoding.recurrent_depth.reference import Reference
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings

TRAINED = [
    "paper_r4",
    "paper_r4_p1",
    "paper_r4_p2",
    "paper_r4_p3",
    "r8",
    "r2_noise05_random",
    "r2_sqrt_mixer",
    "r1_noise02_constant",
    "ema0_exit01",
    "ema05",
    "strict_exit",
    "wave4",
    "wave1_livelock",
    "headway2",
    "fixed_r4",
    "token_stability",
    "accel1",
    "accel2",
    "continuous",
    "no_prefill",
    "cache_full",
    "cache_s16",
    "stop_token",
    "greedy_reppenalty",
]
RANDOM = ["rnd_r1_noise_wave12", "rnd_r2_exit02", "rnd_r3_exit003", "rnd_r4_exit01"]
CASES = [f"trained_242/{case}" for case in TRAINED] + [f"random_242/{case}" for case in RANDOM]

# What the released code calls the parameters that have another name here.
NAMES = {
    "exit_t": "exit_threshold",
    "state_noise_mixing": "noise",
    "ema_embeds": "momentum",
    "freeze_strategy": "freeze",
    "full_prefill": "prefill",
    "cache_lookup_strategy": "cache_budget",
    "max_diffusion_steps": "max_steps",
}
EXACT = [
    "tokens_in",
    "tokens_out",
    "cache_index",
    "width",
    "greedy_new",
    "k",
    "frozen_len",
    "frozen_tail",
    "headway_in_step",
    "cache_len_after",
    "states_after",
]


def settings(given: dict[str, Any]) -> WaveSettings:
    given = {k: v for k, v in given.items() if k != "max_new_tokens"}
    dampened = given.pop("dampened_state_mixer", True)
    sqrt = given.pop("sqrt_mixer", False)
    named = {NAMES.get(k, k): v for k, v in given.items()}
    return WaveSettings(
        **{"cache_budget": "latest-m4-compress-s4", **named},
        noise_schedule="dampened" if dampened else "constant",
        noise_mixing="sqrt" if sqrt else "linear",
        compat="reference",
    )


def run(looped: Any, case: str) -> tuple[Reference, list[int], list[dict[str, Any]], Any, Any]:
    data, arrays = looped.diffusion(case)
    model = looped.model(case.split("/")[0])
    recorded = iter(sorted(k for k in arrays if k.startswith("draw_")))
    fillers = iter(sorted(k for k in arrays if k.startswith("extra_")))
    shapes = count()

    def draw(rows: int) -> torch.Tensor:
        assert data["draw_shapes"][next(shapes)][0] == rows
        if data["settings"]["init_scale"] == 0:
            return torch.zeros(rows, model.loop.width)
        return arrays[next(recorded)]

    penalty = data["generation"].get("repetition_penalty", 1.0)
    processor = RepetitionPenaltyLogitsProcessor(penalty)

    def choose(frozen: torch.Tensor, logits: torch.Tensor) -> int:
        return int(processor(frozen, logits[None].clone()).argmax())

    steps: list[dict[str, Any]] = []
    sampler = Reference(
        model,
        settings(data["settings"]),
        data["prompt_ids"],
        data["settings"]["max_new_tokens"],
        choose=choose,
        draw=draw,
        filler=lambda n: arrays[next(fillers)].tolist() if n else [],
        stop=frozenset({65504, 65505, 65508, data["generation"].get("eos_token_id", 65504)}),
        on_step=steps.append,
    )
    with torch.inference_mode():
        tokens = sampler.run()
    return sampler, tokens, steps, data, arrays


@pytest.mark.parametrize("case", CASES)
def test_the_recorded_run(looped: Any, case: str) -> None:
    sampler, tokens, steps, data, arrays = run(looped, case)
    for got, want in zip(steps, data["steps"], strict=False):
        for key in EXACT:
            assert got[key] == want[key], (want["step"], key)
        assert len(got["criterion"]) == len(want["criterion"])
        if want["criterion"]:
            difference = torch.tensor(got["criterion"]) - torch.tensor(want["criterion"])
            assert difference.abs().max() < 1e-3, want["step"]
        for key in ("latents", "embeds"):
            if (name := f"{key}_{want['step']:03d}") in arrays:
                torch.testing.assert_close(got[key], arrays[name], atol=5e-4, rtol=0)
    assert len(steps) == len(data["steps"])
    assert tokens == data["tokens"]
    assert sampler.core_passes == data["real_core_calls"]
    assert sampler.core_tokens == data["real_core_token_passes"]
