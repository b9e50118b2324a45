"""`linearize.convert`: what a run leaves behind, and that stopping it changes nothing."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import linearize
from linearize import pretrained, recipe
from linearize.errors import UsageError
from linearize.recipe import Recipe
from linearize.training.progress import read

STEPS = 24


@pytest.fixture(scope="module")
def settings(shared: Path) -> Recipe:
    """A conversion of a real model in seconds."""
    return recipe.load(
        "smoke",
        [
            f"base={shared / 'data' / 'models' / 'stories260K'}",
            f"data.source={shared / 'data' / 'tinystories' / 'valid.txt'}",
            "data.seq_len=128",
            "data.eval_tokens=4096",
            "liger.window=16",
            f"training.tokens={STEPS * 4 * 128}",
            "training.batch_size=4",
            "training.objective={distill: 1.0, next_token: 1.0}",
            "training.checkpoint_every=2",
        ],
    )


@pytest.fixture(scope="module")
def finished(settings: Recipe, tmp_path_factory: pytest.TempPathFactory) -> linearize.Result:
    out = tmp_path_factory.mktemp("finished") / "out"
    return linearize.convert(settings.model_copy(update={"out": str(out)}))


def test_the_result_says_what_survived(finished: linearize.Result, settings: Recipe) -> None:
    found = finished.summary
    assert json.loads((finished.path / "result.json").read_text()) == found
    losses = found["losses"]
    assert losses["teacher"] < losses["student"] < losses["before"]
    assert losses["before"] == pytest.approx(losses["window_only"])
    ratio = torch.tensor(losses["student"] - losses["teacher"]).exp().item()
    assert found["perplexity_ratio"] == pytest.approx(ratio)
    assert all(check["passed"] for check in found["checks"])
    assert {check["name"] for check in found["checks"]} == {
        "merged equals adapter",
        "cached decoding equals full forward",
        "saved equals trained",
    }
    steps = [record["step"] for record in read(finished.path / "metrics.jsonl")]
    assert steps == list(range(1, STEPS + 1))
    provenance = json.loads((finished.path / "config.json").read_text())["linearize"]["provenance"]
    assert provenance["hash"] == pretrained.content_hash(Path(settings.base))
    assert provenance["recipe"]["training"]["batch_size"] == 4
    assert not list(finished.path.parent.glob("*.partial"))
    assert not (finished.path / "checkpoints").exists()
    card = (finished.path / "README.md").read_text()
    assert "stories260K" in card
    assert "window alone" in card


@torch.no_grad()
def test_the_result_generates(finished: linearize.Result) -> None:
    tokenizer = AutoTokenizer.from_pretrained(finished.path)
    model = AutoModelForCausalLM.from_pretrained(finished.path)
    prompt = tokenizer("Once upon a time, there was a little", return_tensors="pt")
    for use_cache in (True, False):
        made = model.generate(**prompt, max_new_tokens=40, do_sample=False, use_cache=use_cache)
        assert "girl" in tokenizer.decode(made[0], skip_special_tokens=True)


def test_baseline_and_rank_zero(settings: Recipe, tmp_path: Path) -> None:
    """The window trained alone; every parameter trained, which leaves no teacher."""
    assert settings.lora.rank
    changes = {"baseline": True, "save": "merged"}
    run = settings.model_copy(
        update={"out": str(tmp_path / "a"), "output": settings.output.model_copy(update=changes)}
    )
    found = linearize.convert(run).summary
    assert found["losses"]["window_only_trained"] < found["losses"]["window_only"]
    trained = found["loss_by_position"]["window_only_trained"]
    assert len(trained) == len(found["loss_by_position"]["teacher"])
    full = run.model_copy(
        update={"out": str(tmp_path / "b"), "lora": settings.lora.model_copy(update={"rank": 0})}
    )
    with pytest.raises(UsageError, match=r"lora.rank=0 trains the weights"):
        linearize.convert(full)
    training = settings.training.model_copy(
        update={"objective": {"next_token": 1.0}, "learning_rate": 1e-4}
    )
    found = linearize.convert(full.model_copy(update={"training": training})).summary
    assert found["trained_parameters"] == found["total_parameters"]
    assert found["losses"]["student"] != found["losses"]["before"]


def test_another_recipe_cannot_resume(settings: Recipe, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with _started(settings, out) as process:
        _wait_for_step(out, 2)
        process.send_signal(signal.SIGTERM)
    changed = settings.model_copy(
        update={"out": str(out), "lora": settings.lora.model_copy(update={"rank": 4})}
    )
    with pytest.raises(UsageError, match=r"another recipe \(different: lora\)"):
        linearize.convert(changed, resume=True)


def test_sigterm_saves_and_resume_ends_with_the_same_weights(
    settings: Recipe, finished: linearize.Result, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with _started(settings, out) as process:
        _wait_for_step(out, 3)
        process.send_signal(signal.SIGTERM)
    told = out.with_suffix(".err").read_text()
    assert process.returncode == 130, told
    assert "--resume continues" in told
    assert not out.exists()
    again = linearize.convert(settings.model_copy(update={"out": str(out)}), resume=True)
    _same_run(again.path, finished.path)


@pytest.mark.slow
def test_ten_sigkills_at_random_moments(
    settings: Recipe, finished: linearize.Result, tmp_path: Path
) -> None:
    """From the start of the process to the end of saving."""
    out, moments, kills = tmp_path / "out", random.Random(), 0
    began = time.monotonic()
    with _started(settings, tmp_path / "timed") as process:
        process.wait()
    seconds = time.monotonic() - began
    while kills < 10:
        with _started(settings, out) as process:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(moments.uniform(0.2, 1) * seconds)
            if process.poll() is None:
                process.kill()
                kills += 1
        if out.exists():
            _same_run(out, finished.path)
            out.rename(tmp_path / f"done-{kills}")
    with _started(settings, out) as process:
        process.wait()
    _same_run(out, finished.path)


def _started(settings: Recipe, out: Path) -> subprocess.Popen:
    """A conversion in a process of its own, resuming what is there."""
    file = out.with_suffix(".yaml")
    file.write_text(recipe.dump(settings))
    command = [sys.executable, "-m", "linearize.cli.main", "convert", "--recipe", str(file)]
    with out.with_suffix(".err").open("w") as told:
        return subprocess.Popen(
            [*command, "--out", str(out), "--resume", "--no-report"],
            stdout=subprocess.DEVNULL,
            stderr=told,
        )


def _wait_for_step(out: Path, step: int) -> None:
    metrics = out.with_name(out.name + ".partial") / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and len(metrics.read_text().splitlines()) >= step):
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.01)


def _same_run(path: Path, expected: Path) -> None:
    ours, theirs = (load_file(p / "model.safetensors") for p in (path, expected))
    assert set(ours) == set(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = [
        [(record["step"], record["loss"]) for record in read(p / "metrics.jsonl")]
        for p in (path, expected)
    ]
    assert found[0] == found[1]
