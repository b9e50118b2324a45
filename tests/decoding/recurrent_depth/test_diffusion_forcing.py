"""The wave: the text of plain autoregression with fewer passes, alone and in batches."""

from __future__ import annotations

import json
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from linearize.decoding.recurrent_depth.autoregressive import autoregressive
from linearize.decoding.recurrent_depth.diffusion_forcing import Diffusion, diffuse
from linearize.decoding.recurrent_depth.freezing import RULES
from linearize.decoding.recurrent_depth.noise import MIXINGS, SCHEDULES
from linearize.decoding.recurrent_depth.request import Request, Run
from linearize.decoding.recurrent_depth.wave_settings import WaveSettings
from linearize.errors import CheckError, UsageError
from linearize.eval.bench.wave_passes import SETTINGS
from linearize.recurrent_depth.interface import LoopFacts

PROMPTS = ["c3:02,05,08,11,", "r:abcdabcdab", "s:ann sees ", "c5:10,15,20,25\nr:hhgh"]
# Recorded runs and their settings: what the released code needed is in the recording.
RECORDED = {
    "paper_r4": "r' = 4",
    "paper_r4_p1": "r' = 4",
    "paper_r4_p2": "r' = 4",
    "paper_r4_p3": "r' = 4",
    "r8": "r' = 8",
    "r2_noise05_random": "r' = 2, noise 0.5, dampened",
    "r2_sqrt_mixer": "r' = 2, noise 0.3, sqrt mixing",
    "r1_noise02_constant": "r' = 1, noise 0.2, constant",
    "ema0_exit01": "r' = 2, momentum 0, threshold 0.1",
    "ema05": "r' = 2, momentum 0.5",
    "strict_exit": "r' = 2, threshold 0.002",
    "wave4": "r' = 1, threshold 0.01, wavefront 4",
    "headway2": "r' = 4, headway 2, random states",
    "fixed_r4": "r' = 4, fixed, r = 16",
    "token_stability": "r' = 4, token-stability, r = 16",
    "accel1": "r' = 2, latent-acceleration-1",
    "accel2": "r' = 2, latent-acceleration-2",
    "continuous": "r' = 2, continuous compute",
    "cache_full": "r' = 4, all recurrences kept",
    "cache_s16": "r' = 4, 4 recurrences kept",
}


def ids(text: str) -> list[int]:
    return [ord(c) for c in text]


def request(prompts: list[list[int]], new: int, **how: Any) -> Request:
    length = max(map(len, prompts))
    return Request(
        torch.tensor([[0] * (length - len(p)) + p for p in prompts]),
        new,
        attention_mask=torch.tensor([[0] * (length - len(p)) + [1] * len(p) for p in prompts]),
        **how,
    )


def generators(count: int, seed: int = 7) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed + i) for i in range(count)]


def new_tokens(run: Run, request: Request) -> list[list[int]]:
    return run.ids[:, request.input_ids.shape[1] :].tolist()


@pytest.mark.parametrize("case", RECORDED)
def test_the_text_of_autoregression_in_fewer_passes(looped: Any, case: str) -> None:
    model = looped.model("trained_242")
    recorded, _ = looped.diffusion(f"trained_242/{case}")
    told = SETTINGS[RECORDED[case]]
    folder = looped.folder / "trained_242"
    texts = {
        run["prompt"]: run["tokens"]
        for run in json.loads((folder / "ar.json").read_text())
        if run["num_steps"] == 32
    }
    prompt = recorded["prompt_ids"]
    run = diffuse(model, request([prompt], 40), WaveSettings(**{"num_steps": 32, **told}))
    assert run.ids[0].tolist() == texts[recorded["prompt"]][: len(prompt) + 40]
    assert run.spent.core_passes < recorded["real_core_calls"]


def test_texts_under_noise_that_never_fades_are_those_of_autoregression(looped: Any) -> None:
    """Tokens are taken from states that are at rest without it, whatever it is."""
    model, told = looped.model("trained_242"), SETTINGS["r' = 1, noise 0.2, constant"]
    asked = request([ids(PROMPTS[0])] * 6, 24)
    run = diffuse(model, asked, WaveSettings(num_steps=16, **told), seeds=range(6))
    want = autoregressive(model, asked, num_steps=16, cache_budget=1)
    assert run.ids.tolist() == want.ids.tolist()


@pytest.mark.parametrize("budget", [1, 4, None])
@torch.no_grad()
def test_a_prompt_computes_beside_a_wave_what_it_computes_alone(looped: Any, budget: Any) -> None:
    model, asked = looped.model("random_242"), request([ids(PROMPTS[0]), ids(PROMPTS[2])], 12)
    how = WaveSettings(num_steps=10, inner_recurrence=3, cache_budget=budget)
    wave = Diffusion(model, asked, how, [0, 0])
    wave._begin()
    prompt, steps = wave.prompt, 0
    while wave.prompt is not None:
        wave._step()
        steps += 1
    assert steps == 3, "9 of the 10 recurrences are beside the wave"

    alone = Diffusion(model, asked, replace(how, head_start=0), [0, 0])
    alone._begin()
    assert [row[:1] for row in wave.rows.tokens] == alone.rows.tokens
    for number, slots in alone.depth.cache.slots.items():
        for slot, other in zip(slots, wave.depth.cache.slots[number], strict=True):
            for row, length in enumerate(alone.lengths):
                torch.testing.assert_close(slot[row, :length], other[row, :length])
    assert not prompt.left
    assert wave.depth.spent.core_passes == alone.depth.spent.core_passes == 10


def test_a_head_start_saves_passes_and_keeps_the_text(looped: Any) -> None:
    model, asked = looped.model("trained_242"), request([ids(p) for p in PROMPTS], 20)
    run = diffuse(model, asked, WaveSettings(num_steps=32))
    for limit in (0, 15):  # never, and not beside the longest prompt
        late = diffuse(model, asked, WaveSettings(num_steps=32, head_start=limit))
        assert late.ids.tolist() == run.ids.tolist()
        assert late.spent.core_passes - run.spent.core_passes >= 24
    short = diffuse(model, asked, WaveSettings(num_steps=32, max_steps=1))
    assert len(short.ids[0]) > len(asked.input_ids[0]), "steps beside the prompt do not count"


def test_a_wavefront_of_one_is_adaptive_autoregression(looped: Any) -> None:
    model, prompt, steps = looped.model("trained_242"), ids(PROMPTS[0]), 16
    how = WaveSettings(num_steps=steps, inner_recurrence=1, max_wavefront=1, momentum=0.0)
    run = diffuse(model, request([prompt], 10), how)

    cache = model.new_cache(sharing=1)
    where, tokens, spent = torch.arange(len(prompt))[None], list(prompt), [steps]
    with torch.inference_mode():
        z = torch.zeros(1, len(prompt), model.loop.width)
        e = model.embed(torch.tensor([prompt]), where, cache)
        for step in range(steps):
            z = model.core_step(z, e, where, cache, step)
        tokens.append(int(model.decode(z, where, cache)[0, -1].argmax()))
        for at in range(len(prompt), len(prompt) + 9):
            where = torch.tensor([[at]])
            z = torch.zeros(1, 1, model.loop.width)
            e = model.embed(torch.tensor([tokens[-1:]]), where, cache)
            for step in range(steps):
                before, z = z, model.core_step(z, e, where, cache, step)
                if (z - before).norm() / z.norm() < how.exit_threshold:
                    break
            spent.append(step + 1)
            tokens.append(int(model.decode(z, where, cache)[0, -1].argmax()))
    assert run.ids[0].tolist() == tokens
    assert run.spent.steps == [spent]


@pytest.mark.parametrize("name", ["random_121", "random_242", "trained_242"])
@pytest.mark.parametrize("how", [{}, {"inner_recurrence": 1, "verify_every": 5}], ids=str)
def test_verified_text_is_that_of_autoregression(
    looped: Any, name: str, how: dict[str, Any]
) -> None:
    model = looped.model(name)
    prompts = [ids(PROMPTS[0]), ids(PROMPTS[2])]
    asked = request(prompts, 16)
    want = autoregressive(model, asked, num_steps=12)
    run = diffuse(model, asked, WaveSettings(num_steps=12, verify=True, **how))
    assert new_tokens(run, asked) == new_tokens(want, asked)


def test_verified_draws_are_those_of_autoregression(looped: Any) -> None:
    model = looped.model("random_242")
    prompts = [ids(PROMPTS[0]), ids(PROMPTS[2])]
    want = request(prompts, 12, generators=generators(2))
    asked = request(prompts, 12, generators=generators(2))
    run = diffuse(model, asked, WaveSettings(num_steps=8, verify=True, verify_every=6))
    assert new_tokens(run, asked) == new_tokens(autoregressive(model, want, num_steps=8), want)


def test_a_random_model_needs_the_check(looped: Any) -> None:
    """Without it the texts differ: the tests above would notice a check that does nothing."""
    model, asked = looped.model("random_242"), request([ids(PROMPTS[0])], 16)
    want = autoregressive(model, asked, num_steps=12)
    run = diffuse(model, asked, WaveSettings(num_steps=12, inner_recurrence=1, exit_threshold=0.3))
    assert run.ids.tolist() != want.ids.tolist()


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"inner_recurrence": 2, "headway": 3, "max_wavefront": 7},
        {"inner_recurrence": 1, "noise": 0.3, "init_scale": 1.0, "exit_threshold": 0.3},
        {"freeze": "token-stability", "cache_budget": None},
        {"freeze": "latent-acceleration-2", "continuous_compute": True},
        {"verify": True, "verify_every": 4},
        {"compat": "reference"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["random_242", "trained_242"])
def test_a_batch_is_its_rows_one_by_one(looped: Any, name: str, how: dict[str, Any]) -> None:
    model, options = looped.model(name), WaveSettings(num_steps=12, **how)
    prompts = [ids(p) for p in PROMPTS[:3]]
    ends = [ord(","), ord("a")] if name == "trained_242" else []
    asked = request(prompts, 14, eos_token_id=ends)
    together = diffuse(model, asked, options, seeds=[5, 6, 7])
    for row, prompt in enumerate(prompts):
        single = request([prompt], 14, eos_token_id=ends)
        alone = diffuse(model, single, options, seeds=[5 + row])
        tokens = new_tokens(alone, single)[0]
        assert new_tokens(together, asked)[row][: len(tokens)] == tokens
        assert set(new_tokens(together, asked)[row][len(tokens) :]) <= {0}


def test_draws_follow_seeds_and_equal_autoregression_where_states_converge(looped: Any) -> None:
    model = looped.model("trained_242")
    prompts = [ids(PROMPTS[0]), ids(PROMPTS[2])]
    cut = {"warpers": lambda ids, scores: scores / 0.7}

    def drawn(seed: int, **how: Any) -> list[list[int]]:
        asked = request(prompts, 20, generators=generators(2, seed), **cut)
        return new_tokens(diffuse(model, asked, WaveSettings(num_steps=16, **how)), asked)

    first = drawn(7, exit_threshold=1e-4)
    assert first == drawn(7, exit_threshold=1e-4)
    assert first != drawn(11, exit_threshold=1e-4)
    want = request(prompts, 20, generators=generators(2, 7), **cut)
    assert first == new_tokens(autoregressive(model, want, num_steps=16, cache_budget=1), want)


def test_the_end_of_text_ends_at_once_and_the_length_is_exact(looped: Any) -> None:
    model, prompt = looped.model("trained_242"), ids(PROMPTS[1])
    newline = ord("\n")
    run = diffuse(model, request([prompt], 60, eos_token_id=newline), WaveSettings(num_steps=8))
    assert run.ids[0, len(prompt) :].tolist().index(newline) == len(run.ids[0]) - len(prompt) - 1
    recorded, _ = looped.diffusion("trained_242/stop_token")
    assert run.spent.core_passes < recorded["real_core_calls"]
    for new in (1, 2, 13):
        assert len(diffuse(model, request([prompt], new), WaveSettings()).ids[0]) == 12 + new


def test_processors_apply_to_drafts_and_final_tokens_alike(looped: Any) -> None:
    model, prompt = looped.model("trained_242"), ids(PROMPTS[2])
    penalty = RepetitionPenaltyLogitsProcessor(1.3)
    asked = request([prompt], 30, logits_processor=penalty)
    run = diffuse(model, asked, WaveSettings(num_steps=16, exit_threshold=1e-3))
    want = autoregressive(model, asked, num_steps=16, cache_budget=1)
    assert run.ids.tolist() == want.ids.tolist()
    assert run.spent.core_passes < want.spent.core_passes / 1.5


def test_criteria_see_every_token_in_turn_and_end_a_row(looped: Any) -> None:
    model, seen = looped.model("trained_242"), []

    def criterion(ids: torch.Tensor, scores: None) -> torch.Tensor:
        seen.append(ids.shape[1])
        return torch.tensor([ids.shape[1] >= 21 + 5, False])

    asked = request([ids(PROMPTS[0]), ids(PROMPTS[3])], 9, stopping_criteria=criterion)
    run = diffuse(model, asked, WaveSettings(num_steps=8))
    assert seen == list(range(22, 31))
    assert new_tokens(run, asked)[0][5:] == [0] * 4
    assert 0 not in new_tokens(run, asked)[1]


def test_broken_states_end_with_a_message(looped: Any) -> None:
    model = deepcopy(looped.model("random_121"))
    model.transformer["adapter"].weight.data.fill_(float("nan"))
    with pytest.raises(CheckError, match="NaN or infinite"):
        diffuse(model, request([[1, 2]], 4), WaveSettings(num_steps=4))


def test_a_model_without_input_injection_is_refused(looped: Any) -> None:
    class Blind(type(looped.model("random_121"))):
        @property
        def loop(self) -> LoopFacts:
            return replace(super().loop, injects_input=False)

    model = Blind(looped.model("random_121").config)
    with pytest.raises(UsageError, match="Blind takes in a token only once"):
        diffuse(model, request([[1, 2]], 4), WaveSettings())


@given(
    how=st.fixed_dictionaries(
        {
            "inner_recurrence": st.integers(1, 5),
            "freeze": st.sampled_from(sorted(RULES)),
            "exit_threshold": st.sampled_from([0.0, 0.01, 0.3, 2.0]),
            "headway": st.integers(1, 3),
            "max_wavefront": st.sampled_from([0, 3, 8]),
            "noise": st.sampled_from([0.0, 0.4, 1.0]),
            "noise_schedule": st.sampled_from(sorted(SCHEDULES)),
            "noise_mixing": st.sampled_from(MIXINGS),
            "momentum": st.sampled_from([0.0, 0.1, 0.9]),
            "init_scale": st.sampled_from([0.0, 1.0]),
            "continuous_compute": st.booleans(),
            "cache_budget": st.sampled_from([None, 1, 2]),
        }
    ),
    prompts=st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=6), min_size=1, max_size=3),
    new=st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_any_setting_ends_with_the_right_length(
    looped: Any, how: dict[str, Any], prompts: list[list[int]], new: int
) -> None:
    model, asked = looped.model("random_121"), request(prompts, new)
    run = diffuse(model, asked, WaveSettings(num_steps=5, **how))
    assert [len(row) for row in new_tokens(run, asked)] == [new] * len(prompts)
    # Every row's first position settles after r recurrences at most.
    longest = 5 + new * (5 + how["inner_recurrence"])
    assert run.spent.core_passes <= longest
    for row in range(len(prompts)):
        told = run.spent.row(row)
        assert len(told["steps"]) == new
        assert told["mean_wavefront"] <= (how["max_wavefront"] or new)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"inner_recurrence": 0}, "inner_recurrence=0 must be a whole number, at least 1"),
        ({"inner_recurrence": 8}, "inner_recurrence=8 is more than num_steps=4"),
        ({"num_steps": 0}, "num_steps=0"),
        ({"num_steps": 5000}, "1 to 4096"),
        ({"headway": 3, "max_wavefront": 2}, "max_wavefront=2 cannot hold headway=3"),
        ({"head_start": -1}, "head_start=-1"),
        ({"max_wavefront": -1}, "max_wavefront=-1"),
        ({"exit_threshold": -0.1}, "exit_threshold=-0.1"),
        ({"exit_threshold": float("nan")}, "exit_threshold=nan"),
        ({"noise": 1.5}, "noise=1.5 must be from 0 to 1"),
        ({"momentum": 1}, "momentum=1 would never"),
        ({"init_scale": float("inf")}, "init_scale=inf"),
        ({"freeze": "latent-dif"}, "did you mean 'latent-diff'"),
        ({"noise_schedule": "cosine"}, "no noise_schedule 'cosine'"),
        ({"cache_budget": 0}, "cache budget 0"),
        ({"cache_budget": 5}, "cache_budget=5"),
        ({"verify": True, "cache_budget": 2}, "verify=True"),
        ({"verify": True, "init_scale": 1.0}, "verify=True"),
        ({"verify": True, "compat": "reference"}, "verify=True is ours"),
        ({"prefill": False}, "compat='reference'"),
        ({"compat": "refrence"}, "compat='refrence'"),
        ({"compat": "reference", "freeze": "fixed", "max_wavefront": 3}, "max_wavefront=3"),
        ({"compat": "reference", "prefill": False, "max_wavefront": 1}, "cannot hold the prompt"),
    ],
    ids=str,
)
def test_what_cannot_be_done_is_said(looped: Any, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        diffuse(
            looped.model("random_121"),
            request([[1, 2]], 4),
            WaveSettings(**{"num_steps": 4, **wrong}),
        )
