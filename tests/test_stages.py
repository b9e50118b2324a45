"""Stages of a conversion: what they train, and that stopping in any of them changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import linearize
from linearize import plan, recipe
from linearize.errors import UsageError
from linearize.recipe import Recipe
from linearize.training import checkpoint, loop

STAGES = "[{tokens: 600, train: mix, mix_learning_rate: 0.05}, {tokens: 300, learning_rate: 1e-3}]"


def settings(shared: Path, out: Path, *more: str) -> Recipe:
    """Stages of 5 and 3 steps, then 4."""
    return recipe.load(
        "smoke",
        [
            f"base={shared / 'data' / 'models' / 'stories260K'}",
            f"data.source={shared / 'data' / 'tinystories' / 'valid.txt'}",
            f"out={out}",
            "data.seq_len=64",
            "data.eval_tokens=500",
            "liger.window=16",
            "liger.mix=joint",
            "training.tokens=500",
            "training.batch_size=2",
            "training.checkpoint_every=2",
            f"stages={STAGES}",
            *more,
        ],
    )


@pytest.fixture(scope="module")
def finished(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> linearize.Result:
    out = tmp_path_factory.mktemp("finished") / "out"
    return linearize.convert(settings(shared, out, "output.baseline=true"))


def test_the_result_tells_of_every_stage(finished: linearize.Result) -> None:
    found = finished.summary
    assert [stage["steps"] for stage in found["stages"]] == [5, 3]
    assert found["steps"] == 5 + 3 + 4
    assert found["tokens"] == 12 * 128
    assert found["stages"][0]["loss"][1] < found["stages"][0]["loss"][0]
    assert any(weight for layer in found["mix"].values() for weight in layer)
    assert not list(finished.path.rglob("checkpoints"))
    records = (finished.path / "stage-1" / "metrics.jsonl").read_text().splitlines()
    assert {"align", "step"} <= json.loads(records[0]).keys()
    assert (finished.path / "baseline" / "stage-1").is_dir()


@pytest.mark.parametrize("stops", [(4,), (6,), (11,), (4, 7)])
def test_a_run_that_dies_in_any_stage_ends_with_the_same_weights(
    stops: tuple[int, ...],
    finished: linearize.Result,
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`stops`: steps at which the machine fails, counted over all attempts."""
    calls, step = [], loop._Run._step

    def dying(self: loop._Run, number: int) -> dict:
        calls.append(number)
        if len(calls) in stops:
            raise RuntimeError("the machine fails")
        return step(self, number)

    monkeypatch.setattr(loop._Run, "_step", dying)
    run = settings(shared, tmp_path / "out")
    for attempt in range(len(stops)):
        with pytest.raises(RuntimeError, match="the machine fails"):
            linearize.convert(run, resume=attempt > 0)
    found = linearize.convert(run, resume=True)
    assert len(calls) < 12 + 3 * len(stops), "it began anew instead of going on"
    ours, theirs = (load_file(r.path / "model.safetensors") for r in (found, finished))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert found.summary["losses"]["student"] == finished.summary["losses"]["student"]


def test_a_stage_trains_what_it_says(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, save = [], checkpoint.save

    def kept(run_dir: Path, progress, *, parameters, **more) -> Path:
        seen.append((run_dir.name, {"mix" if ".mix." in n else "lora" for n in parameters}))
        return save(run_dir, progress, parameters=parameters, **more)

    monkeypatch.setattr(checkpoint, "save", kept)
    linearize.convert(settings(shared, tmp_path / "out"))
    assert [part for name, part in seen if name == "stage-1"] == [{"mix"}] * 3
    assert all(part == {"mix", "lora"} for name, part in seen if name != "stage-1")


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["liger.mix=fixed"], "liger.mix=fixed has nothing to train"),
        (["stages=[{tokens: 10, objective: {aligned: 1}}]"], "did you mean 'align'"),
        (["stages=[{tokens: 10, objective: {ditto: 1, align: 1}}]"], "for repeated rows"),
        (["stages=[{token: 10}]"], "unknown recipe key 'stages.0.token'"),
        (["lora.rank=0", "training.objective={next_token: 1}"], "objective 'align' needs as"),
    ],
)
def test_impossible_stages_are_refused(
    more: list[str], reason: str, shared: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=reason):
        plan.plan(settings(shared, tmp_path / "out", *more))
