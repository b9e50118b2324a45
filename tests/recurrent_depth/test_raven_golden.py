"""Numbers of the released code, at the tolerances of their README."""

from __future__ import annotations

import pytest
import torch
from looped_models import GOLDEN

from linearize.recurrent_depth.interface import LoopedModel

RUNS = {"trained_242": 10, "random_242": 1}


def close(got: torch.Tensor, expected: torch.Tensor, atol: float) -> None:
    torch.testing.assert_close(got, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_forward(loops, name: str) -> None:
    model, held = loops.model(name), loops.arrays(f"{name}/forward")
    ids, start = held["input_ids"], held["state0"]
    positions = torch.arange(ids.shape[1]).expand(ids.shape)
    embedded = model.transformer.wte(ids) * model.config.n_embd**0.5
    close(embedded, held["embed_scaled"], 1e-5)
    e = model.embed(ids, positions)
    close(e, held["prelude_out"], 1e-4)
    close(model.transformer.adapter(torch.cat([start, e], -1)), held["adapter_out_r1"], 1e-4)

    z, states = start, [start]
    for step in range(32):
        z = model.core_step(z, e, positions, None, step)
        states.append(z)
    after = torch.stack(states[1:])
    change = (after[1:] - after[:-1]).norm(dim=-1) / after[1:].norm(dim=-1)
    close(change.mean((1, 2)), held["rel_change"], 1e-4)
    for i, r in enumerate(held["recurrences"].tolist()):
        out = model(ids, input_states=start, num_steps=r)
        close(out.logits, held["logits"][i], 1e-3)
        close(out.latent_state, held["latents_raw"][i], 2e-4)
        close(states[r], held["latents_raw"][i], 2e-4)
        close(model.transformer.ln_f(out.latent_state), held["latent_states_lnf"][i], 2e-4)
    for i, r in enumerate(held["zero_state_recurrences"].tolist()):
        got = model(ids[:1], init_scale=0, num_steps=r).logits
        close(got, held["zero_state_logits"][i], 1e-3)


@pytest.mark.parametrize("name", GOLDEN)
def test_initial_states(loops, name: str) -> None:
    model, held = loops.model(name), loops.arrays(f"{name}/forward")
    for key, scale in (("init_draw_seed4242", 1.0), ("init_draw_seed4242_scale05", 0.5)):
        torch.manual_seed(4242)
        close(model.initial_state((1, 3), scale=scale), held[key], 1e-6)
        again = torch.Generator().manual_seed(4242)
        close(model.initial_state((1, 3), scale=scale, generator=again), held[key], 1e-6)


@pytest.mark.parametrize("name", GOLDEN)
@torch.no_grad()
def test_decoding_with_every_cache(loops, name: str) -> None:
    model, held = loops.model(name), loops.arrays(f"{name}/decode")
    slots = loops.records(f"{name}/decode")["cache_slot_indices"]
    start = loops.arrays(f"{name}/forward")["state0"][:1]
    ids, first = held["input_ids"], int(held["prefill"])
    cases = [key for key in held if key.startswith("logits__")]
    assert len(cases) == (2 if name == "random_121" else 12)
    for case in cases:
        _, sharing, r = case.split("__")
        cache, logits = model.new_cache(sharing=sharing), []
        for a, b in [(0, first), *((i, i + 1) for i in range(first, ids.shape[1]))]:
            states, steps = start[:, a:b], int(r[1:])
            out = model(ids[:, a:b], input_states=states, num_steps=steps, past_key_values=cache)
            logits.append(out.logits)
        close(torch.cat(logits, 1), held[case], 1e-3)
        assert sorted(cache.slots) == slots[f"{sharing}__{r}"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize(
    "longest",
    [pytest.param(1100, id="quick"), pytest.param(2000, id="all", marks=pytest.mark.slow)],
)
@torch.no_grad()
def test_greedy_text(loops, name: str, longest: int) -> None:
    model, runs = loops.model(name), loops.records(f"{name}/ar")
    assert len(runs) == RUNS[name]
    for run in runs:
        if run["core_calls"] > longest:
            continue
        ids, new = torch.tensor([run["prompt_ids"]]), run["max_new_tokens"]
        settings = {"num_steps": run["num_steps"], "init_scale": run["init_scale"]}
        cache = model.new_cache(sharing=run["strategy"])
        if run.get("continuous_compute"):
            got = _continuous(model, ids, cache, new, settings)
        else:
            got = model.generate(
                ids, past_key_values=cache, max_new_tokens=new, do_sample=False, **settings
            )[0].tolist()
        assert got == run["tokens"]


def _continuous(model, ids: torch.Tensor, cache, new: int, settings: dict) -> list[int]:
    """Each token starts from the normed last state of the one before."""
    text, states, last = ids[0].tolist(), None, ids
    for _ in range(new):
        out = model(last, past_key_values=cache, input_states=states, **settings)
        last = out.logits[:, -1:].argmax(-1)
        states = model.transformer.ln_f(out.latent_state[:, -1:])
        text.append(int(last))
    return text


@torch.no_grad()
def test_tokens_that_stop_early(loops) -> None:
    """Exit when the state changes by less than 3 %: every lookup of missing recurrences."""
    model = loops.model("trained_242")
    runs = [
        run
        for run in loops.records("trained_242/adaptive")
        if run["criterion"] == "latent-diff" and "options" not in run
    ]
    assert {r["strategy"] for r in runs} > {"full", "latest-m4", "available-m4", "always-last-m4"}
    for run in runs:
        text, steps = _adaptive(model, run)
        assert text == run["tokens"], run["strategy"]
        assert steps == run["steps_per_token"], run["strategy"]


def _adaptive(model: LoopedModel, run: dict) -> tuple[list[int], list[int]]:
    cache = model.new_cache(sharing=run["strategy"])
    text, steps = list(run["prompt_ids"]), []
    for _ in range(run["max_new_tokens"]):
        past = int(cache.lengths[0]) if len(cache.lengths) else 0
        positions = torch.arange(past, len(text))[None]
        e = model.embed(torch.tensor([text[past:]]), positions, cache)
        z = model.initial_state(e.shape[:2], scale=0)
        for step in range(run["max_steps"]):
            before, z = z, model.core_step(z, e, positions, cache, step)
            change = (z - before).norm(dim=-1) / z.norm(dim=-1)
            if change.mean() < run["threshold"]:
                break
        steps.append(step + 1)
        logits = model.decode(z, positions, cache, logits_to_keep=1)
        text.append(int(logits[0, -1].argmax()))
    return text, steps
