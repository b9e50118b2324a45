"""Two real processes find on every local task what one finds."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from small_recall import small

from linearize.eval.tasks import TASKS

pytest.importorskip("lm_eval", reason="lm-eval is not installed")


def launcher() -> list[str]:
    """accelerate's, which starts one process on a CPU unless it takes it for several GPUs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*launch, "--main_process_port", str(port)]


def samples(out: Path, task: str) -> dict[int, Any]:
    lines = (out / f"samples_{task}.jsonl").read_text().splitlines()
    return {sample["doc_id"]: sample for sample in map(json.loads, lines)}


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data: Path, tmp_path: Path) -> None:
    asked = ["-m", "linearize.cli.main", "eval", "embedded", "--tasks", ",".join(TASKS)]
    asked += ["--data-dir", data, "--num_fewshot", "2", "--limit", "3"]
    asked += ["--gen_kwargs", "max_gen_toks=8"]
    asked += ["--log_samples", "--execute-code", "--batch_size", "4", "--device", "cpu"]
    for task in TASKS:
        if "samples" in small(task) or "length" in small(task):
            for key, value in small(task).items():
                asked += ["--task-arg", f"{task}.{key}={value}"]
    for name, before in {"one": [], "two": launcher()}.items():
        ended = subprocess.run(
            [sys.executable, *before, *asked, "--out", tmp_path / name],
            timeout=280,
            capture_output=True,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "two" / "responses.1.jsonl").stat().st_size
    alone, together = (
        json.loads((tmp_path / name / "results.json").read_text())["results"]
        for name in ("one", "two")
    )
    for task in TASKS:
        one, two = samples(tmp_path / "one", task), samples(tmp_path / "two", task)
        assert sorted(one) == sorted(two)
        for i, sample in one.items():
            assert two[i]["arguments"] == sample["arguments"], "the same examples"
            # The harness asks a process's last request again while another has more to do.
            for (single,), (split, *_) in zip(sample["resps"], two[i]["resps"], strict=True):
                if isinstance(single, list):
                    assert split == [pytest.approx(single[0], abs=1e-3), single[1]]
                else:
                    assert split == (single if isinstance(single, str) else pytest.approx(single))
        for key, value in alone[task].items():
            if isinstance(value, float) and "_stderr" not in key:  # some of which are resampled
                assert together[task][key] == pytest.approx(value, rel=1e-4), (task, key)
