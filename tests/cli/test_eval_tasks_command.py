"""`linearize eval --tasks`: the harness behind the command, and what a person does wrong."""

from __future__ import annotations

import json
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
