"""Looped models in the training loop: drawn recurrences, curriculum, resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from small_run import small_rows, small_settings

from linearize.errors import InputError
from linearize.recipe import RecurrenceSettings
from linearize.recurrent_depth.model import RavenConfig, RavenForCausalLM
from linearize.training.evaluate import loss_by_recurrences, mean_loss
from linearize.training.loop import train
from linearize.training.recurrence import mean_at, recurrences

DEPTH = RecurrenceSettings(mean=4, backprop=2, ramp=0.5)


def looped() -> RavenForCausalLM:
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_heads": 2, "intermediate_size": 48, "vocab_size": 64}
    layers = {f"n_layers_in_{part}": 1 for part in ("prelude", "recurrent_block", "coda")}
    return RavenForCausalLM(RavenConfig(**shape, **layers, block_size=64, mean_recurrence=4))


def go(run_dir: Path, steps: int, *, depth: RecurrenceSettings = DEPTH, **changes):
    model = looped()
    changes = {"learning_rate": 1e-2, "seed": 3} | changes
    result = train(
        model,
        small_rows(),
        settings=small_settings(steps, **changes),
        run_dir=run_dir,
        recurrence=depth,
        resume=True,
    )
    return model, result


@pytest.mark.parametrize("shape", ["linear", "1-sqrt"])
def test_the_mean_rises_from_one(shape: str) -> None:
    settings = RecurrenceSettings(mean=16, ramp=0.25, shape=shape)
    means = [mean_at(step, 400, settings) for step in range(1, 401)]
    assert means[0] == 1
    assert means == sorted(means)
    assert set(means[100:]) == {16}
    assert max(means[:90]) < 16
    if shape == "1-sqrt":
        assert means[50] == math.ceil(1 + 15 * (1 - math.sqrt(0.5)))


def test_without_a_ramp_the_mean_is_there_at_once() -> None:
    assert mean_at(1, 10, RecurrenceSettings(mean=5, ramp=0)) == 5


def test_draws_have_the_mean_and_depend_on_seed_and_step_only() -> None:
    settings = RecurrenceSettings(mean=8, backprop=3, ramp=0)
    drawn = [recurrences(step, 2000, settings, seed=1) for step in range(1, 2001)]
    assert drawn[:50] == [recurrences(step, 2000, settings, seed=1) for step in range(1, 51)]
    assert drawn[:50] != [recurrences(step, 2000, settings, seed=2) for step in range(1, 51)]
    assert {with_gradient for _, with_gradient in drawn} == {1, 2, 3}
    # Poisson(tau) + 1 with E[tau] = 8, and a standard error of 0.12
    assert abs(sum(map(sum, drawn)) / 2000 - 9) < 0.5


def test_all_carry_gradient_while_the_mean_is_small() -> None:
    settings = RecurrenceSettings(mean=16, backprop=8, ramp=1.0)
    early = [recurrences(step, 1000, settings, seed=0) for step in range(1, 300)]
    assert all(without == 0 for without, _ in early)


def test_learns_with_drawn_recurrences_and_resumes_to_the_same(tmp_path: Path) -> None:
    rows = small_rows()
    untrained = mean_loss(looped(), rows, batch_size=8)[0]
    straight, result = go(tmp_path / "straight", 40)
    lines = (tmp_path / "straight/metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    counts = [record["recurrences"] for record in records if "loss" in record]
    assert len(set(counts)) > 3
    found = loss_by_recurrences(straight, rows, batch_size=8, recurrences=(1, 4, 8))
    assert found[4] < 0.8 * untrained
    assert found[4] == mean_loss(straight, rows, batch_size=8)[0]
    assert found[1] != found[8]

    class Stopped(Exception):
        pass

    def stop(record: dict) -> None:
        if record["step"] == 20:
            raise Stopped

    with pytest.raises(Stopped):
        train(
            looped(),
            rows,
            settings=small_settings(40, learning_rate=1e-2, seed=3),
            run_dir=tmp_path / "stopped",
            recurrence=DEPTH,
            on_step=stop,
        )
    resumed, again = go(tmp_path / "stopped", 40)
    assert again.losses == result.losses
    with pytest.raises(InputError, match="recurrence"):
        go(tmp_path / "stopped", 40, depth=RecurrenceSettings(mean=5))
    assert all(map(torch.equal, straight.parameters(), resumed.parameters()))


def test_accumulated_batches_share_the_draw(tmp_path: Path) -> None:
    model, seen = looped(), []
    model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["num_steps"]), with_kwargs=True
    )
    settings = small_settings(6, accumulate=2)
    train(model, small_rows(), settings=settings, run_dir=tmp_path, recurrence=DEPTH)
    assert seen[0::2] == seen[1::2]
    assert seen[0::2] == [recurrences(step, 6, DEPTH, seed=0) for step in range(1, 7)]
