"""From a real pretrained model to a directory that decodes, through the commands alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command import Command

import linearize

SMALL = ["tokens=2048", "seq_len=128", "eval_tokens=512", "batch_size=4", "sample_tokens=8"]


@pytest.fixture
def arguments(stories: Path, shared: Path) -> list[str | Path]:
    text = shared / "data" / "tinystories" / "valid.txt"
    return ["convert", stories, "--data", text, "--recipe", "smoke", *SMALL]


def test_convert_then_report(
    arguments: list[str | Path], tmp_path: Path, linearize_command: Command
) -> None:
    out = tmp_path / "out"
    ended = linearize_command(*arguments, "--out", out, "--json")
    assert ended.code == 0, ended.out + ended.err
    found = ended.json
    assert found["path"] == str(out)
    assert found["tokens"] == 2048
    assert found["losses"]["student"] < found["losses"]["before"]
    saved = json.loads((out / "result.json").read_text())
    assert {**found, **saved} == found
    samples = json.loads((out / "samples.json").read_text())
    assert len(samples) == 1
    assert all(samples[0][key] for key in ("prompt", "teacher", "student"))
    assert samples[0]["student"] in (out / "report.html").read_text()

    (out / "report.html").unlink()
    assert linearize_command("report", out).out == f"{out / 'report.html'}\n"
    assert (out / "report.html").exists()

    again = linearize_command(*arguments, "--out", out, "--overwrite", "--no-report")
    assert again.code == 0, again.err
    for told in ("teacher", "student", "window alone", "12,840 of 260,072", str(out), "decode"):
        assert told in " ".join(again.out.split())
    assert not (out / "report.html").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out", "stories260K"]


def test_adapter_then_merge(
    arguments: list[str | Path], tmp_path: Path, linearize_command: Command
) -> None:
    adapter, merged = tmp_path / "adapter", tmp_path / "merged"
    ended = linearize_command(*arguments, "--adapter-only", "--no-report", "--out", adapter)
    assert ended.code == 0, ended.err
    assert not (adapter / "model.safetensors").exists()
    ended = linearize_command("merge", adapter, "--out", merged, "--json")
    assert ended.json == {"path": str(merged)}
    ids = torch.arange(3, 100)[None]
    with torch.no_grad():
        one, two = (linearize.load(p)(input_ids=ids).logits for p in (adapter, merged))
    torch.testing.assert_close(one, two)
    assert linearize_command("merge", adapter, "--out", merged).code == 5
    assert linearize_command("merge", merged, "--out", tmp_path / "x").code == 3


def test_a_report_needs_a_finished_run(tmp_path: Path, linearize_command: Command) -> None:
    ended = linearize_command("report", tmp_path, "--json")
    assert ended.code == 3
    assert "result.json" in ended.json["error"]["message"]
