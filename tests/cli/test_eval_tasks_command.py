"""`linearize eval --tasks`: the harness behind the command, and what a person does wrong."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from command import Command

pytest.importorskip("lm_eval", reason="lm-eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval's own


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [
        {"goal": f"open jar {i}", "sol1": "turn the lid", "sol2": "eat it", "label": i % 2}
        for i in range(9)
    ]
    folder = tmp_path / "data" / "piqa"
    folder.mkdir(parents=True)
    (folder / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder.parent


def test_a_task_with_options_of_the_harness(
    data: Path, tmp_path: Path, linearize_command: Command
) -> None:
    out = tmp_path / "out"
    asked = ["eval", "embedded", "--tasks", "local_piqa", "--data-dir", data, "--out", out]
    asked += ["--num_fewshot", "2", "--limit", "4", "--log_samples", "--batch_size", "auto"]
    ended = linearize_command(*asked, "--json")
    assert ended.code == 0, ended.err
    found = ended.json
    assert found["n-shot"] == {"local_piqa": 2}
    assert found["n-samples"]["local_piqa"] == {"original": 9, "effective": 4}
    saved = json.loads((out / "results.json").read_text())
    assert saved["results"] == found["results"]
    samples = (out / "samples_local_piqa.jsonl").read_text().splitlines()
    assert len(samples) == 4
    assert json.loads(samples[0])["arguments"][0][0].count("Question:") == 3
    kept = (out / "responses.jsonl").read_bytes()
    shown = linearize_command(*asked)
    assert (out / "responses.jsonl").read_bytes() == kept, "nothing was computed again"
    for told in ("local_piqa", "acc_norm", "sampler: as the task says", "results.json"):
        assert told in shown.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--suite", "repetition"], 2, "one of them"),
        (["--use_cache", "here"], 2, "--use_cache is not passed on"),
        (["--num_fewshots", "2"], 2, "unrecognized arguments: --num_fewshots 2"),
        (["--num_fewshot", "two"], 2, "invalid int value: 'two'"),
        (["--samplers", "greedy"], 2, "--samplers belongs to --suite"),
        (["--sampler", "gredy"], 2, "did you mean 'greedy'"),
        (["--limit", "1.5"], 2, "neither a number of documents nor a share"),
        (["--log_samples"], 2, "--out DIR"),
        (["--batch-size", "many"], 2, "batch_size='many'"),
        (["--task-arg", "file=3"], 2, "not NAME.KEY=VALUE"),
        (["--data-dir", "/nowhere"], 3, "/nowhere holds no piqa/validation.jsonl"),
        (["--recurrences", "3"], 2, "needs a looped model"),
        (["--peft", "/nowhere"], 3, "no model directory"),
    ],
    ids=str,
)
def test_mistakes_with_tasks(
    arguments: list[str], code: int, says: str, data: Path, linearize_command: Command
) -> None:
    asked = ["--tasks", "local_piqa", "--data-dir", data, "--limit", "2", *arguments]
    ended = linearize_command("eval", "embedded", *asked)
    assert ended.code == code, ended.err
    assert says in ended.err
    assert ended.err.count("\nerror:") + ended.err.startswith("error:") == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embedded"], "--tasks NAMES or --suite"),
        (["--tasks", "local_piqa"], "name the model"),
        (["embedded", "--suite", "repetition"], "--out DIR"),
        (["embedded", "--suite", "repetition", "--out", "x", "--jrt", "2"], "belongs to --tasks"),
        (["embedded", "--suite", "repetition", "--out", "x", "--limt", "2"], "--limt"),
        (["embedded", "--suite", "repetition", "--out", "x", "--limit", "0.5"], "from 1 up"),
    ],
    ids=str,
)
def test_mistakes_before_anything_is_asked(
    arguments: list[str], says: str, linearize_command: Command
) -> None:
    ended = linearize_command("eval", *arguments)
    assert ended.code == 2
    assert says in ended.err


@pytest.mark.slow
def test_two_processes_find_what_one_finds(data: Path, tmp_path: Path) -> None:
    asked = ["-m", "linearize.cli.main", "eval", "embedded", "--tasks", "local_piqa"]
    asked += ["--data-dir", data, "--num_fewshot", "2", "--log_samples", "--device", "cpu"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launch += ["--main_process_port", str(port)]
    found = []
    # accelerate's own launcher starts one process on a CPU, unless it takes it for several GPUs
    for name, before in {"one": [], "two": launch}.items():
        subprocess.run(
            [sys.executable, *before, *asked, "--out", tmp_path / name],
            check=True,
            timeout=280,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        lines = (tmp_path / name / "samples_local_piqa.jsonl").read_text().splitlines()
        samples = {s["doc_id"]: s for s in map(json.loads, lines)}
        results = json.loads((tmp_path / name / "results.json").read_text())["results"]
        found.append((samples, results["local_piqa"]))
    assert (tmp_path / "two" / "responses.1.jsonl").stat().st_size
    (one, alone), (two, together) = found
    assert sorted(one) == sorted(two) == list(range(9))
    for i, sample in one.items():
        assert two[i]["arguments"] == sample["arguments"], "the same examples"
        for single, split in zip(sample["resps"], two[i]["resps"], strict=True):
            assert split[0][0] == pytest.approx(single[0][0], abs=1e-3)
    assert together["acc,none"] == alone["acc,none"]
