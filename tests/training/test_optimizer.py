from __future__ import annotations

import pytest
import torch
from small_run import small_settings
from torch import nn

from linearize.recipe import TrainingSettings
from linearize.training.optimizer import adamw, set_rate, share_of_rate, steps_of


@pytest.mark.parametrize(
    ("tokens", "steps"), [(0, 0), (1, 1), (4 * 2 * 10, 1), (4 * 2 * 10 + 1, 2)]
)
def test_steps_use_up_the_budget(tokens, steps):
    settings = TrainingSettings(tokens=tokens, batch_size=4, accumulate=2)
    assert steps_of(settings, seq_len=10) == (steps, 80)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_learning_rate_rises_then_follows_the_schedule(schedule):
    settings = small_settings(schedule=schedule, warmup=0.1, final_lr=0.2)
    shares = [share_of_rate(step, 100, settings) for step in range(100)]
    assert shares[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert shares[10] == 1
    assert shares[-1] == pytest.approx(1 if schedule == "constant" else 0.2)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    if schedule != "constant":
        # Half way (between two steps): the mean of first and last in both schedules.
        assert (shares[54] + shares[55]) / 2 == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_runs_have_a_learning_rate(steps):
    for schedule in ("cosine", "linear", "constant"):
        for warmup in (0.0, 0.5, 0.99):
            settings = small_settings(schedule=schedule, warmup=warmup)
            shares = [share_of_rate(step, steps, settings) for step in range(steps)]
            assert all(0 < share <= 1 for share in shares)


def test_groups_by_name_and_shape():
    names = {
        "layers.0.self_attn.q_proj.weight": (4, 4),
        "layers.0.norm.weight": (4,),
        "layers.0.self_attn.mix.weight": (2, 2),
        "layers.1.self_attn.mix.modules_to_save.default.weight": (2,),
        "layers.1.mixer.weight": (3, 3),
    }
    parameters = {name: nn.Parameter(torch.zeros(shape)) for name, shape in names.items()}
    settings = small_settings(learning_rate=1e-3, mix_learning_rate=0.1, weight_decay=0.3)
    optimizer = adamw(parameters, settings)
    set_rate(optimizer, 0.5)
    found = {
        name: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for name, parameter in parameters.items()
        if any(parameter is other for other in group["params"])
    }
    assert list(found.values()).count((0.05, 0.0)) == 2
    assert found["layers.0.self_attn.mix.weight"] == (0.05, 0.0)
    assert found["layers.0.norm.weight"] == (5e-4, 0.0)
    assert found["layers.0.self_attn.q_proj.weight"] == (5e-4, 0.3)
    assert found["layers.1.mixer.weight"] == (5e-4, 0.3)
    rates = {group["rate"] for group in adamw(parameters, small_settings()).param_groups}
    assert rates == {1e-3}
