"""SIGKILL at random moments, in real processes: nothing may be lost or done twice."""

from __future__ import annotations

import random
import time

import torch
from small_run import children, go

from linearize.training import checkpoint
from linearize.training.progress import read

STEPS = 120  # more than ten rounds can take, by the waits below
KILLS = 10


def test_killed_ten_times_and_resumed_equals_uninterrupted(tmp_path):
    def start(name):
        changes = {"steps": STEPS, "checkpoint_every": 2, "resume": True}
        changes["weights"] = tmp_path / f"{name}.pt"
        process = children().Process(target=go, args=(tmp_path / name,), kwargs=changes)
        process.start()
        return process

    def last_step(name):
        return max(
            (record["step"] for record in read(tmp_path / name / "metrics.jsonl")), default=0
        )

    whole = start("whole")
    whole.join()
    assert whole.exitcode == 0
    expected = read(tmp_path / "whole/metrics.jsonl")
    seconds = expected[-1]["seconds"] / STEPS

    moments = random.Random()
    for kill in range(KILLS):
        newest = checkpoint.latest(tmp_path / "killed")
        done = int(newest.name.removeprefix("step-")) if newest else 0
        process = start("killed")
        if kill % 3 == 2:  # while it loads and resumes
            time.sleep(moments.uniform(0, 20 * seconds))
        else:  # while it trains, logs and saves
            steps = moments.randint(1, 3)
            while process.is_alive() and last_step("killed") < done + steps:
                time.sleep(0.002)
            time.sleep(moments.uniform(0, 2 * seconds))
        assert process.is_alive()
        process.kill()
        process.join()
    process = start("killed")
    process.join()
    assert process.exitcode == 0

    ours, theirs = torch.load(tmp_path / "killed.pt"), torch.load(tmp_path / "whole.pt")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    found = read(tmp_path / "killed/metrics.jsonl")
    assert [record["step"] for record in found] == list(range(1, STEPS + 1))
    assert [record["loss"] for record in found] == [record["loss"] for record in expected]
    names = {path.name for path in (tmp_path / "killed/checkpoints").iterdir()}
    assert names == {f"step-{STEPS - 2:08d}", f"step-{STEPS:08d}"}
